"""Files: what can be read, and writing so that a reader never sees half of one (write beside, then rename).

What is not a regular file (a device, a pipe, `/dev/stdout`) can't be replaced: it is opened and written in place.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rtdetr_deploy.errors import OutputError, RtdetrError

SLOTS = 4
"""Fixed names of temporary files for one target."""
LONGEST_SUFFIX = 16
"""Suffixes up to this length are kept in temporary names, whose length must not depend on the file's name."""

MAX_LINKS = 40
"""As many links as Linux follows."""

_DESCRIPTOR = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd/(\d+)")


def reason(problem: Exception) -> str:
    """Return what an error of the operating system says, without its number and file name."""
    return getattr(problem, "strerror", None) or str(problem)


def refuse_named_pipe(path: Path, error: type[RtdetrError]) -> None:
    """Raise `error` for a named pipe or a device, whose opening or reading may wait for ever.

    The process's own descriptors (`/dev/stdin`, the shell's `<(command)`) have a writer and are fine.
    """
    with suppress(OSError, ValueError):  # what is missing or can't be looked at is said by whoever opens it
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode) and _descriptor(path) is None:
            raise error(f"{path} is a pipe or a device, expected a regular file")


def require_file(path: Path, error: type[RtdetrError]) -> int:
    """Return the size in bytes of the file `path`; raise `error` with one clear line where it can't be read."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise error(f"{path} is a folder; name the file in it")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
            raise error(f"{path} is a pipe or a device, expected a regular file; copy it into one")
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except (OSError, ValueError) as problem:  # ValueError: a name with a zero byte
        if isinstance(problem, RtdetrError):
            raise
        raise error(f"can't open {path}: {reason(problem)}") from problem


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder (same suffix) to write to; it becomes `path` when the block ends without error.

    Links are followed: what they lead to is replaced. The folder is made if needed. On any error, the half-written
    file is removed and `path` stays as it was; an `OSError` (no space, no permission) becomes an `OutputError`, unless
    it names another file. The half-written file of a process that was killed is used again.

    What is not a regular file is written in place, when the block has ended without error.
    """
    if in_place(path):
        with _written_in_place(path) as beside:
            yield beside
        return
    target = Path(os.path.realpath(path))
    with _writing(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside, lock = _create_beside(target)
    try:
        yield beside
        _put_in_place(beside, target)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        if not isinstance(error, OSError) or isinstance(error, (BrokenPipeError, RtdetrError)):
            raise
        if error.filename not in (None, str(beside)):
            raise
        raise OutputError(f"can't write {path}: {reason(error)}") from error
    finally:
        lock.close()


def _put_in_place(beside: Path, target: Path) -> None:
    """Rename `beside` to `target`, which keeps its permissions; what can't be replaced gets the content instead."""
    with suppress(OSError):
        beside.chmod(stat.S_IMODE(target.stat().st_mode))
    try:
        os.replace(beside, target)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):  # a file that is mounted, as containers do it
            raise
        shutil.copyfile(beside, target)
        beside.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all. Raises `OutputError`."""
    with atomic_write(path) as beside, beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def in_place(path: Path) -> bool:
    """Tell whether `path` is written in place: it exists, and is a device, a pipe or an open descriptor.

    Raises `OutputError` when it is a folder or can't be looked at.
    """
    with _writing(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(mode):
            raise OutputError(f"can't write {path}: a folder of that name exists")
        return not stat.S_ISREG(mode) or _descriptor(path) is not None


def open_in_place(path: Path) -> BinaryIO:
    """Open for writing, unbuffered, what is written in place. Raises `OutputError`.

    One of this process's own descriptors (`/dev/stdout`) is shared: what else goes there is not overwritten.
    """
    with _writing(path):
        process, number = _descriptor(path) or (None, 0)
        own = os.dup(number) if process == os.getpid() else os.open(path, os.O_WRONLY)
        return os.fdopen(own, "wb", buffering=0)


def is_standard_output(path: Path) -> bool:
    """Tell whether `path` leads to where standard output goes, as `/dev/stdout` does; `/dev/null` doesn't count."""
    try:
        there = path.stat()
        return os.path.samestat(there, os.fstat(1)) and not os.path.samestat(there, os.stat(os.devnull))
    except (OSError, ValueError):
        return False


def refuse_overwriting(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path]) -> None:
    """Raise `OutputError` when an output is one of the inputs or another output, by way of links too.

    `outputs` maps what the user typed ("--json") to its path. What is written in place overwrites nothing.
    """
    taken: dict[object, str] = {}
    for option, output in outputs.items():
        for key in _keys(output) if output is not None and not in_place(output) else []:
            if taken.get(key, option) != option:
                raise OutputError(f"{taken[key]} and {option} both name {output}; choose another file for one of them")
            taken[key] = option
    for source in inputs:
        for key in _keys(source):
            if key in taken:
                raise OutputError(f"{taken[key]} would overwrite the input {source}; choose another file")


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Raise `OutputError` now when `path` could not be written after long work; leaves nothing behind.

    With `folder`, `path` is the folder that files will be written into.
    """
    with _writing(path):
        if not folder and in_place(path):
            if not os.access(path, os.W_OK):
                raise OutputError(f"can't write {path}: Permission denied")
            return
        target = Path(os.path.realpath(path))
        existing = target if folder else target.parent
        while not _exists(existing):
            existing = existing.parent
        if not existing.is_dir():
            raise OutputError(f"can't write {path}: {existing} is not a folder")
        with tempfile.TemporaryFile(dir=existing):
            pass


def _exists(path: Path) -> bool:
    """As `Path.exists`, but a name that is too long, or a folder that can't be searched, is an `OSError`."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into an `OutputError` about `path`."""
    try:
        yield
    except BrokenPipeError:  # whoever read it has gone
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise OutputError(f"can't write {path}: {reason(error)}") from error


def _keys(path: str | Path) -> list[object]:
    """Return what two names of one file have in common: the path without links, and the file's number on its disk."""
    keys: list[object] = []
    with suppress(OSError, ValueError):
        keys.append(os.path.realpath(path))
        found = os.stat(path)
        keys.append((found.st_dev, found.st_ino))
    return keys


def _descriptor(path: Path) -> tuple[int, int] | None:
    """Return process and number of the open descriptor that `path` leads to (Linux), e.g. for `/dev/stdout`."""
    place = str(path)
    for _ in range(MAX_LINKS):
        folder, name = os.path.split(place)
        place = os.path.join(os.path.realpath(folder), name)
        found = _DESCRIPTOR.fullmatch(place)
        if found:
            return int(found[1]), int(found[2])
        if not os.path.islink(place):
            return None
        place = os.path.join(os.path.dirname(place), os.readlink(place))
    return None


@contextmanager
def _written_in_place(path: Path) -> Iterator[Path]:
    """Yield a temporary file whose content goes to `path` in the end."""
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder, f"part{_suffix(path)}")
        yield beside
        with _writing(path), beside.open("rb") as source, open_in_place(path) as target:
            if sys.stdout is not None:
                sys.stdout.flush()  # what was printed before this comes before it
            shutil.copyfileobj(source, target)


def _suffix(path: Path) -> str:
    return path.suffix if len(path.suffix) <= LONGEST_SUFFIX else ""


def _create_beside(target: Path) -> tuple[Path, BinaryIO]:
    """Return an empty temporary file in the folder of `target`, and what must be closed when it is no longer needed.

    A few names are always the same, so that what a killed process left is used again; where they are taken by others,
    or files can't be locked, the name is random.
    """
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]
    for number in range(SLOTS if sys.platform != "win32" else 0):
        beside = target.with_name(f".{digest}-{number}.part{_suffix(target)}")
        file = _take(beside)
        if file is not None:
            return beside, file
    beside = target.with_name(f".{digest}-{secrets.token_hex(4)}.part{_suffix(target)}")
    return beside, beside.open("xb")


def _take(beside: Path) -> BinaryIO | None:
    """Make and lock the file `beside`, or empty it where a killed process left it; None where it is somebody else's."""
    import fcntl

    try:
        made = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        made = None
    try:
        file = os.fdopen(made if made is not None else os.open(beside, os.O_RDWR | os.O_NOFOLLOW), "r+b")
    except OSError:  # gone again, a link, or of another user
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(file.fileno())
        ours = found.st_nlink == 1 and found.st_uid == os.geteuid() and os.path.samestat(found, beside.lstat())
        if made is not None or ours:
            file.truncate()
            return file
    except OSError:  # locked by its owner, renamed, or on a file system without locks
        if made is not None:
            with suppress(OSError):
                beside.unlink()
    file.close()
    return None
