"""What is kept of a build beside the name of its engine: what one looks at, or sends, when something is wrong.

r50.engine.refused      the engine that failed its verification; `trtexec --loadEngine` takes it
r50.engine.log          versions, options and all that TensorRT said
r50.engine.layers.json  the engine inspector's layers: names, shapes, precisions, kernels

A file of such a name that was not written here is left alone; ours is called r50.engine.build.log then.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rtdetr_deploy.errors import OutputError, RtdetrError
from rtdetr_deploy.files import write_bytes
from rtdetr_deploy.runtimes.trt.logger import log_since, mark

BEGINNINGS = {".refused": rb"", ".log": rb"rtdetr-deploy \S+, TensorRT ", ".layers.json": rb'\{\n "Layers": \['}
"""What our files begin with, by suffix. An engine has no beginning of ours; its suffix is nobody else's."""
LONGEST_BEGINNING = 200


def kept_paths(output: Path, suffix: str) -> tuple[Path, ...]:
    """Return the names that a kept file of the engine `output` may have, the first one first."""
    return tuple(output.with_name(f"{output.name}{between}{suffix}") for between in ("", ".build"))


class Diagnosis:
    """Keeps what is known of the build of `output`; `content` and `layers` are set once they are there.

    `header` begins the log, as `BEGINNINGS` says.
    """

    def __init__(self, output: Path, header: str) -> None:
        self._output, self._header = output, header
        self._since = mark()
        self.content: bytes | None = None
        self.layers: Sequence[Any] = ()

    @contextmanager
    def explaining(self, hint: str = "") -> Iterator[None]:
        """Keep what there is where the block fails, and name the files in its error, behind `hint`."""
        try:
            yield
        except RtdetrError as error:
            kept = self.keep(refused=self.content, note=str(error))
            if not kept:
                raise
            names = ", ".join(map(str, kept))
            raise type(error)(f"{error}{hint}; for diagnosis see {names}") from error

    def keep(self, *, refused: bytes | None = None, note: str = "") -> list[Path]:
        """Write the files instead of those of an earlier build; return those that could be written.

        What they tell about matters more than they do: that one can't be written is not an error.
        """
        self.clear()
        log = f"{self._header}\n{log_since(self._since)}{note}".rstrip() + "\n"
        layers = json.dumps({"Layers": list(self.layers)}, indent=1) if self.layers else None
        contents = (refused, log.encode(), None if layers is None else layers.encode())
        kept = []
        for suffix, content in zip(BEGINNINGS, contents, strict=True):
            free = [path for path in kept_paths(self._output, suffix) if not os.path.lexists(path)]
            if content is not None and free:
                with suppress(OutputError):
                    write_bytes(free[0], content)
                    kept.append(free[0])
        return kept

    def clear(self) -> None:
        """Remove what an earlier build of this engine has left: it is not about the engine that is there now."""
        for suffix, beginning in BEGINNINGS.items():
            for path in kept_paths(self._output, suffix):
                with suppress(OSError):
                    if _begins(path, beginning):
                        path.unlink()


def _begins(path: Path, beginning: bytes) -> bool:
    """Whether `path` is a file with that beginning."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return re.match(beginning, file.read(LONGEST_BEGINNING)) is not None
