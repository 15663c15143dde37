"""What the command lines share: errors as one line, and orderly ends: interrupts, signals, closed pipes, full disks."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO, cast

from rtdetr_deploy.cli.arguments import Parser, in_words_of_the_command
from rtdetr_deploy.errors import OutputError, RtdetrError
from rtdetr_deploy.files import reason
from rtdetr_deploy.words import printable

WRONG_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
SIGNALLED = 128
"""Added to a signal's number, as shells do."""

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def run_main(
    prog: str, main: Callable[[], int], on_interrupt: str, *, spellings: Mapping[str, str] | None = None
) -> int:
    """Run `main` and return its exit status; say in one line on stderr what stopped it.

    2 for wrong input, a result that can't be written or memory that doesn't suffice, 130 after Ctrl-C (with the words
    `on_interrupt`), 141 quietly when whoever reads standard output has gone. SIGTERM and SIGHUP end the work as Ctrl-C
    does, with 128 + the signal's number. `main` may parse the arguments: what argparse prints is treated alike.
    Arguments named in errors are shown as the command's options (`spellings`: see `in_words_of_the_command`).
    """
    Parser.last = None
    with _prepared_streams(prog, spellings), _ended_by_signals() as received:
        try:
            return _run(main)
        except RtdetrError as error:
            _say(prog, as_shown(error, spellings))
        except KeyboardInterrupt:
            _say(prog, f"{f'ended by {received[0].name}' if received else 'interrupted'}; {on_interrupt}")
            return SIGNALLED + received[0] if received else INTERRUPTED
        except BrokenPipeError:
            return BROKEN_PIPE
        except MemoryError as error:
            amount = f" ({error})" if str(error) else ""
            _say(prog, f"there is not enough memory{amount}; use a smaller image, size or batch")
        except OSError as error:
            _say(prog, _describe(error))
    return WRONG_INPUT


def as_shown(message: object, spellings: Mapping[str, str] | None = None) -> str:
    """Return a library's message in the words of the command whose options were parsed last."""
    options = None if Parser.last is None else Parser.last.spellings()
    return in_words_of_the_command(str(message), spellings, options)


def _run(main: Callable[[], int]) -> int:
    try:
        status = main()
    except SystemExit:  # argparse has printed its help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


class _Output:
    """Standard output, whose errors can be told from those of other files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _about_standard_output():
            return self._stream.write(text)

    def flush(self) -> None:
        with _about_standard_output():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _about_standard_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"can't write standard output: {reason(error)}") from error


@contextmanager
def _prepared_streams(name: str, spellings: Mapping[str, str] | None) -> Iterator[None]:
    """Let odd names and closed streams not stop the block, and give warnings in one line."""
    for number in (0, 1, 2):  # a file opened later must not get the number of a closed stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in ("stdout", "stderr"):
        found = getattr(sys, stream)
        if found is None:  # it was closed: >&-
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(found, io.TextIOWrapper):  # the terminal's encoding may lack characters of names
            found.reconfigure(errors="backslashreplace")
    stdout, format_warning = sys.stdout, warnings.formatwarning
    sys.stdout = cast("TextIO", _Output(stdout))
    warnings.formatwarning = lambda message, *_, **__: f"{name}: warning: {printable(as_shown(message, spellings))}\n"
    try:
        yield
    finally:
        sys.stdout, warnings.formatwarning = stdout, format_warning
        _discard_output()


@contextmanager
def _ended_by_signals() -> Iterator[list[signal.Signals]]:
    """Let SIGTERM and SIGHUP interrupt the block as Ctrl-C does; yields the list that they are noted in.

    What is ignored (nohup) or handled already stays so.
    """
    received: list[signal.Signals] = []
    process = os.getpid()
    wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in wanted if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        ours = []

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a forked child, which has nothing to clean up
            os._exit(SIGNALLED + number)
        for other in ours:  # the next one must not disturb the cleaning up
            signal.signal(other, signal.SIG_IGN)
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _say(name: str, text: object) -> None:
    with suppress(OSError, ValueError):  # standard error may be full or closed
        print(f"{name}: {printable(text)}", file=sys.stderr, flush=True)


def _describe(error: OSError) -> str:
    """Say what went wrong, and where: with the file's name, or where temporary files go when it is about space."""
    if error.filename is not None:
        return f"can't use {error.filename}: {reason(error)}"
    if error.errno in _NO_SPACE:
        folder = tempfile.tempdir or os.environ.get("TMPDIR", "the system's folder for them")
        return f"can't write a temporary file: {reason(error)}; they go to {folder}, TMPDIR chooses another folder"
    return f"the operating system refused a call: {reason(error)}"


def _discard_output() -> None:
    """Send what can't be written nowhere, so that the interpreter does not fail again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # standard output may not be a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError:  # closed
        pass
