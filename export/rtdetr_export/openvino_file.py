"""OpenVINO's own files, made of an ONNX graph: `.xml` with graph and metadata, `.bin` beside it with the weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rtdetr_deploy.errors import OutputError
from rtdetr_deploy.files import atomic_write, reason
from rtdetr_deploy.packages import require
from rtdetr_deploy.runtimes.ov_xml import WEIGHTS_KEY, describe_weights

SUFFIX = ".xml"
WEIGHTS = ".bin"


def write_xml(onnx: bytes, entries: Mapping[str, str], path: Path) -> None:
    """Write the ONNX model as `path`, an `.xml` file, and its `.bin` file; weights stay in the types that they have.

    `entries` are stored in `rt_info`, and what the weights are, so that others beside it are found out. The same model
    gives the same bytes.
    """
    openvino = require("openvino", "writing .xml files", "openvino")
    model = openvino.Core().read_model(onnx)
    for name in list(model.rt_info):  # what the ONNX file had, in a form of OpenVINO's own
        del model.rt_info[name]
    for name, value in entries.items():
        model.set_rt_info(value, [name])
    for index, node in enumerate(model.get_ordered_ops()):
        if node.friendly_name == node.name:  # which counts all nodes that the process has ever made
            node.friendly_name = f"{node.get_type_name()}_{index}"
    openvino.save_model(model, str(path), compress_to_fp16=False)
    model.set_rt_info(describe_weights(path.with_suffix(WEIGHTS).read_bytes()), [WEIGHTS_KEY])
    openvino.save_model(model, str(path), compress_to_fp16=False)


@contextmanager
def written_together(path: Path) -> Iterator[Path]:
    """Yield the path of an `.xml` file in a temporary folder; it and its `.bin` file go to `path` when the block ends.

    On any error nothing is written. The weights are put in place first, and both by renaming. Raises `OutputError`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = TemporaryDirectory(dir=path.parent, prefix=".part-")
    except OSError as error:
        raise OutputError(f"can't write {path}: {reason(error)}") from error
    with temporary as folder:
        beside = Path(folder, path.name)
        yield beside
        for suffix in (WEIGHTS, SUFFIX):
            with atomic_write(path.with_suffix(suffix)) as placed:
                _move(beside.with_suffix(suffix), placed)


def _move(source: Path, target: Path) -> None:
    """Rename a file; to another disk, where a link leads there, it is copied."""
    try:
        os.replace(source, target)
    except OSError:
        shutil.copyfile(source, target)
