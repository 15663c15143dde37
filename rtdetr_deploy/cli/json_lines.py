"""JSON lines, one object per image, on a stream or into a file that holds whole lines whatever happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, TextIO

from rtdetr_deploy.detections import Detections
from rtdetr_deploy.errors import OutputError
from rtdetr_deploy.files import atomic_write, in_place, open_in_place, reason
from rtdetr_deploy.images.frame import Frame


class JsonLines:
    """JSON lines: `write` takes each as a whole, and errors are about the file `name`."""

    def __init__(self, write: Callable[[str], None], name: str) -> None:
        self._write, self._name = write, name

    def append(self, path: Path, frame: Frame, detections: Detections) -> None:
        """Write the line of one image at once: whoever reads a pipe gets each as it is done."""
        height, width = frame.size
        entry = {"image": str(path), "width": width, "height": height, "detections": detections.to_dicts()}
        try:
            self._write(json.dumps(entry) + "\n")  # ASCII: not every file name is valid UTF-8
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"can't write {self._name}: {reason(error)}") from error


def open_json_lines(target: Path | TextIO | None, stack: ExitStack) -> JsonLines | None:
    """Return what writes to `target`, closed with `stack`: a file appears under its name when it is whole."""
    if target is None:
        return None
    if not isinstance(target, Path):
        return JsonLines(partial(_write_flushed, target), "standard output")
    if in_place(target):  # not written beside first: see `JsonLines.append`
        return JsonLines(partial(_write_whole, stack.enter_context(open_in_place(target))), str(target))
    beside = stack.enter_context(atomic_write(target))
    return JsonLines(partial(_write_whole, stack.enter_context(beside.open("wb", buffering=0))), str(target))


def _write_flushed(file: TextIO, line: str) -> None:
    file.write(line)
    file.flush()


def _write_whole(file: RawIOBase | BinaryIO, line: str) -> None:
    """Write to an unbuffered file; what was written of the line before an error is cut off again."""
    start = file.tell() if file.seekable() else None
    rest = memoryview(line.encode())
    try:
        while rest:
            rest = rest[file.write(rest) or 0 :]
    except BaseException:
        if start is not None:
            with suppress(OSError):
                file.truncate(start)
        raise
