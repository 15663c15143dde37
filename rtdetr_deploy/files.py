"""Files: what can be read, and writing so that a reader never sees half of one (write beside, then rename)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rtdetr_deploy.errors import OutputError, RtdetrError


def require_file(path: Path, error: type[RtdetrError]) -> int:
    """Return the size in bytes of the file `path`; raise `error` with one clear line where it can't be read."""
    try:
        if path.is_dir():
            raise error(f"{path} is a folder; name the file in it")
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except (OSError, ValueError) as problem:  # ValueError: a name with a zero byte
        raise error(f"can't open {path}: {getattr(problem, 'strerror', None) or problem}") from problem


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder (same suffix) to write to; it becomes `path` when the block ends without error.

    The folder is made if needed. On any error, the half-written file is removed and `path` stays as it was; an
    `OSError` (no space, no permission) becomes an `OutputError`.
    """
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OutputError(f"can't write {path}: a folder of that name exists")
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            beside.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all. Raises `OutputError`."""
    with written_beside(path) as beside, beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
