"""Folders that serving systems take: the ONNX file and what the system wants beside it, by the name of the format.

Another system is one module with the functions of `Format`, and one line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_export.formats import deepstream


class CheckModel(Protocol):
    """Raises `OptionError` for a file that the system can't run."""

    def __call__(self, *, raw_input: bool, raw_output: bool, batch: int | None) -> None: ...


@dataclass(frozen=True)
class Format:
    """What a folder for one serving system, called `system`, holds.

    `check_model` is called before any work is done.
    `check_folder(folder)` raises `OutputError` where what is in the folder already would be taken for the new model's.
    `make_files(info)` gives the content of each file beside the ONNX file `onnx`, by its name in the folder;
    `file_names` are all that it may give. It raises `OptionError` for a model that the system can't prepare images for.
    `next_steps(folder, info)` is what to do where the model will run, for people. `tensorrt` says whether TensorRT will
    run the file: INT8 goes with FP16 then.
    """

    system: str
    onnx: str
    file_names: tuple[str, ...]
    check_model: CheckModel
    check_folder: Callable[[Path], None]
    make_files: Callable[[ArtifactInfo], Mapping[str, bytes]]
    next_steps: Callable[[Path, ArtifactInfo], str]
    tensorrt: bool


FORMATS: Mapping[str, Format] = {
    "deepstream": Format(
        system=deepstream.SYSTEM,
        onnx=deepstream.ONNX,
        file_names=deepstream.FILE_NAMES,
        check_model=deepstream.check_model,
        check_folder=deepstream.check_folder,
        make_files=deepstream.make_files,
        next_steps=deepstream.next_steps,
        tensorrt=True,
    ),
}
