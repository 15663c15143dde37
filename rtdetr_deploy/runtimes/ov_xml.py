"""OpenVINO's own files: `.xml` with the graph, `.bin` beside it with the weights, metadata in the graph's `rt_info`."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.files import reason, require_file

SUFFIX = ".xml"


class Weights:
    """The content of a `.bin` file in memory, read as it is needed; what is made of it must not outlive it."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # A private copy: OpenVINO's tensors want memory that can be written to, and nobody writes.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.array = np.frombuffer(self._map, np.uint8)

    def forget(self) -> None:
        """Give the memory back to the system: compiling has copied most weights; what is used is read again."""
        if hasattr(self._map, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def read_xml(openvino: Any, core: Any, path: Path) -> tuple[Any, Weights | None]:
    """Return the model in an `.xml` file, and its weights, if it has any.

    Raises `ArtifactError` for a file that is not XML, and weights that can't be read; OpenVINO's errors are its own.
    """
    content = _read_text(path)
    weights = path.with_suffix(".bin")
    if not weights.exists() or require_file(weights, ArtifactError) == 0:
        return _read_without_weights(core, path), None
    kept = Weights(weights)
    return core.read_model(content, openvino.Tensor(kept.array, shared_memory=True)), kept


def _read_without_weights(core: Any, path: Path) -> Any:
    """Return a model that has none. Raises `ArtifactError` for one that needs some."""
    try:
        return core.read_model(str(path))
    except RuntimeError as error:
        if "weights" not in str(error):
            raise
        told = f"{path.name} needs its weights, {path.with_suffix('.bin').name}"
        raise ArtifactError(f"{told}, which is not beside it or is empty; copy both files") from error


def _read_text(path: Path) -> str:
    """Return the XML. Raises `ArtifactError` for other files: OpenVINO would try other formats and print about them."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"can't read {path}: {reason(error)}") from error
    if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ArtifactError(f"{path.name} is not a model of OpenVINO: it is not XML")
    return content.decode("utf-8", "replace")


def text_entries(model: Any) -> dict[str, str]:
    """Return the text entries of a model's `rt_info`, leaving out nested ones."""
    entries = {key: getattr(value, "value", None) for key, value in model.rt_info.items()}
    return {key: value for key, value in entries.items() if isinstance(value, str)}
