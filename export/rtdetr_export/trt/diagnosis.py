"""What is kept of a build beside the name of its engine: what one looks at, or sends, when something is wrong.

r50.engine.refused      the engine that failed its verification; `trtexec --loadEngine` takes it
r50.engine.log          versions, options and all that TensorRT said
r50.engine.layers.json  the engine inspector's layers: names, shapes, precisions, kernels
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rtdetr_deploy.errors import OutputError, RtdetrError
from rtdetr_deploy.files import write_bytes
from rtdetr_deploy.runtimes.trt.logger import log_since, mark

SUFFIXES = (".refused", ".log", ".layers.json")


class Diagnosis:
    """Keeps what is known of the build of `output`; `content` and `layers` are set once they are there.

    `header` begins the log.
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

        What they tell about matters more than they do: that one can't be written is no error.
        """
        self.clear()
        log = f"{self._header}\n{log_since(self._since)}{note}".rstrip() + "\n"
        layers = json.dumps({"Layers": list(self.layers)}, indent=1) if self.layers else None
        contents = (refused, log.encode(), None if layers is None else layers.encode())
        kept = []
        for suffix, content in zip(SUFFIXES, contents, strict=True):
            if content is not None:
                with suppress(OutputError):
                    write_bytes(self._path(suffix), content)
                    kept.append(self._path(suffix))
        return kept

    def clear(self) -> None:
        """Remove what an earlier build of this engine has left: it is not about the engine that is there now."""
        for suffix in SUFFIXES:
            with suppress(OSError):
                self._path(suffix).unlink(missing_ok=True)

    def _path(self, suffix: str) -> Path:
        return self._output.with_name(self._output.name + suffix)
