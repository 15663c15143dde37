"""OpenVINO's own files: `.xml` with the graph, `.bin` beside it with the weights, metadata in the graph's `rt_info`."""

from __future__ import annotations

import mmap
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.files import reason, require_file

SUFFIX = ".xml"
WEIGHTS_KEY = "rtdetr_deploy_weights"
"""Entry of `rt_info`: size in bytes and digest of the `.bin` file that an `.xml` file was written with."""
_WEIGHTS_ENTRY = re.compile(rf'<{WEIGHTS_KEY} value="(\d+) ([0-9a-f]+)" ?/>')


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

    Raises `ArtifactError` for a file that is not XML, and weights that can't be read or belong to another file;
    OpenVINO's errors are its own.
    """
    content = _read_text(path)
    weights = path.with_suffix(".bin")
    if not weights.exists() or require_file(weights, ArtifactError) == 0:
        return _read_without_weights(core, path), None
    kept = Weights(weights)
    _check_weights(content, kept, path)
    return core.read_model(content, openvino.Tensor(kept.array, shared_memory=True)), kept


def describe_weights(content: Any) -> str:
    """Return size and digest (CRC-32: a mistake is to be found, not an attack) of the content of a `.bin` file."""
    return f"{len(content)} {zlib.crc32(content):08x}"


def _check_weights(xml: str, kept: Weights, path: Path) -> None:
    """Raise `ArtifactError` for weights that are not those that the `.xml` file was written with, where it says so."""
    entry = _WEIGHTS_ENTRY.search(xml)
    if entry is None:
        return
    size, there = int(entry[1]), len(kept.array)
    if there == size:
        if describe_weights(kept.array.data).split()[1] == entry[2]:
            kept.forget()
            return
        found = "other content"
    else:
        found = f"{there} bytes instead of {size}"
    raise ArtifactError(
        f"{path.with_suffix('.bin').name} is not what {path.name} was written with: it has {found}; copy both files of "
        f"one export (who changes such a model has to delete `{WEIGHTS_KEY}` in its rt_info)"
    )


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
