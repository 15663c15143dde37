"""What the command lines share: errors as one line, interrupts and closed pipes without a traceback."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from rtdetr_deploy.errors import RtdetrError

WRONG_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def run_command(name: str, work: Callable[[], int], interrupted: str) -> int:
    """Run `work` and return its exit status; say in one line on stderr what stopped it.

    2 for wrong input or a result that can't be written, 130 after Ctrl-C (with the words `interrupted`), 141 quietly
    when whoever reads standard output has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal's encoding lacks must not stop the work
            stream.reconfigure(errors="backslashreplace")
    try:
        status = work()
        sys.stdout.flush()
    except RtdetrError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except OSError as error:
        _discard_output()
        print(f"{name}: can't write standard output: {error.strerror or error}", file=sys.stderr)
        return WRONG_INPUT
    return status


def _discard_output() -> None:
    """Send what is left in the buffer nowhere, so that the interpreter does not fail again when it ends."""
    with suppress(OSError, ValueError):  # standard output may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
