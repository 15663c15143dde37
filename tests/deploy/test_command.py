"""How the commands end: one line for every problem, orderly ends for signals, closed streams and full disks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings
from argparse import BooleanOptionalAction
from pathlib import Path

import pytest

from rtdetr_deploy.cli.arguments import Parser
from rtdetr_deploy.cli.run import run_main
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.words import plural, printable

HAS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")


def _command(body: str) -> list[str]:
    code = (
        "import os, sys, time, pathlib\nfrom rtdetr_deploy.cli.run import run_main\n"
        "from rtdetr_deploy.files import atomic_write\n"
        f"def work():\n    {body}\n    return 0\nsys.exit(run_main('tool', work, 'what was done is kept'))"
    )
    return [sys.executable, "-c", code]


def test_an_error_of_another_file_is_not_called_one_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> int:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "lost.bin")

    def full() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert run_main("tool", missing, "") == 2
    assert capsys.readouterr().err == "tool: can't use lost.bin: No such file or directory\n"
    assert run_main("tool", full, "") == 2
    error = capsys.readouterr().err
    assert error.startswith("tool: can't write a temporary file: No space left on device; they go to ")
    assert "TMPDIR" in error


@HAS_FULL
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_only_standard_output_s_own_errors_are_called_so(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            _command("print('text')"), stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "tool: can't write standard output: No space left on device\n"


@HAS_FULL
@pytest.mark.parametrize(
    "module", ["rtdetr_deploy.cli.detect", "rtdetr_export.cli", "rtdetr_train.cli", "rtdetr_bench.cli"]
)
def test_help_on_a_full_disk_gives_one_line(module: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", module, "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith(": can't write standard output: No space left on device\n")
    assert done.stderr.count("\n") == 1


def _as_at_a_terminal() -> None:
    """Tests that run in the background inherit an ignored SIGINT, under nohup an ignored SIGHUP."""
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_signals_end_the_work_as_ctrl_c_does(name: str, status: int, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    body = (
        f"with atomic_write(pathlib.Path({str(target)!r})) as beside: "
        "beside.write_bytes(b'half'); print('ready', flush=True); time.sleep(60)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        _command(body),
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=_as_at_a_terminal,  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        error = process.stderr.read()
    assert process.returncode == status
    assert error == f"tool: {'interrupted' if name == 'SIGINT' else f'ended by {name}'}; what was done is kept\n"
    assert list(tmp_path.iterdir()) == []


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    body = "import signal; os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.05); print('went on')"
    command = ["nohup", *_command(body)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run_main("tool", lambda: 0, "") == 0
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_do_not_stop_the_work(closed: str, tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(_command(f"print('text'); pathlib.Path({str(tmp_path / 'made')!r}).write_text('yes')")[2])
    done = subprocess.run(
        f'"{sys.executable}" "{script}" {closed}', shell=True, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert (tmp_path / "made").read_text() == "yes"


def test_memory_that_does_not_suffice_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise MemoryError("Unable to allocate 9 TiB")

    assert run_main("tool", work, "") == 2
    error = capsys.readouterr().err
    assert error.startswith("tool: there is not enough memory (Unable to allocate 9 TiB); use a smaller")


def test_warnings_are_one_line_without_source_code() -> None:
    done = subprocess.run(
        _command("import warnings; warnings.warn('one\\ntwo')"), capture_output=True, text=True, check=True
    )
    assert done.stderr == "tool: warning: one\\ntwo\n"
    assert "warnings" in warnings.formatwarning("x", UserWarning, "warnings.py", 1)


def test_names_can_not_steer_a_terminal_nor_break_a_line() -> None:
    assert printable("a\x1b[31mb\nc\x07\x9b\u202e") == "a\\x1b[31mb\\nc\\x07\\x9b\\u202e"
    assert printable("红细胞 é \u200d") == "红细胞 é \u200d"


def test_errors_name_the_options_that_the_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("x", "")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-verify", dest="verify", action="store_false")
    parser.add_argument("--bf16", action=BooleanOptionalAction)

    def work() -> int:
        parser.parse_args(["m.onnx", "--threads", "1"])
        raise OptionError(
            "`threads` or `threads=2`, `model`, `verify=False`, `bf16=False`, `bf16=True`; `class_names`, "
            '`precision="int8"`'
        )

    assert run_main("x", work, "") == 2
    told = '--threads or --threads 2, MODEL, --no-verify, --no-bf16, --bf16; class_names, precision="int8"'
    assert capsys.readouterr().err == f"x: {told}\n"


def test_plurals() -> None:
    assert [plural(0, "image"), plural(1, "image"), plural(2, "class")] == ["0 images", "1 image", "2 classes"]


def test_ctrl_c_while_a_command_is_being_imported_is_one_line() -> None:
    command = [
        sys.executable,
        "-c",
        "import sys, signal, threading, os\n"
        "import rtdetr_deploy.cli.detect as cli\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.exit(cli.main(['m.onnx', 'a.jpg']))",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == "rtdetr-detect: interrupted; what was done is kept\n"
