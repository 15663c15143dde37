"""gpu-check without a GPU: what it is asked for, what it writes, and what a check that fails or hangs comes to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

from fake_cuda import FakeCuda
from gpu_check import apart, cli
from gpu_check.check import Check, CheckFailedError, Outcome, Situation, SkippedError, demand, perform
from gpu_check.checks import resize
from gpu_check.checks.api import check_memory_accesses
from gpu_check.cli import choose, find_gpu, format_outcome, main, result_path
from gpu_check.options import ROOT, CheckOptions
from gpu_check.table import CHECKS
from rtdetr_deploy import DeviceError, MissingPackageError, OptionError
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Gpu

T4 = Gpu(0, "Tesla T4", "7.5", 16 << 30)
SITUATION: Any = Situation(None, T4, CheckOptions())  # type: ignore[arg-type]  # these checks touch no GPU


def _check(work: Any, seconds: int = 10) -> Check:
    return Check("one", "a check", seconds, work)


def _raise(error: BaseException) -> Any:
    def work(_: Situation) -> Any:
        raise error

    return work


def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_gpu("cuda")
        pytest.skip("a GPU is here")
    except (DeviceError, MissingPackageError):
        assert main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu-check: ")
    assert "GPU" in error or "pip install" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("newest", "named"), [(12, True), (None, True), (13, False)])
def test_a_driver_that_is_too_old_for_the_packages_is_told_of_those_for_cuda_12(
    newest: int | None, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "import_cuda", lambda: Cuda(FakeCuda(gpus=-1)))
    monkeypatch.setattr(cli, "cuda_of_driver", lambda: newest)
    with pytest.raises(DeviceError, match="no NVIDIA GPU can be used: CUDA says: CUDA driver version") as caught:
        find_gpu("cuda")
    assert str(caught.value).endswith("; to check on a driver before 580: make gpu-check CUDA=12") == named


def _make(*arguments: str) -> str:
    """Return what make would do, without doing it."""
    made = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return made.stdout.replace("\\\n", "")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_checks_in_an_environment_that_fits_the_driver() -> None:
    of_cuda_12 = _make("gpu-check", "CUDA=12", "ONLY=calls sampler")
    assert "build/gpu-check-cuda12/bin/python -m gpu_check --only calls --only sampler" in of_cuda_12
    assert "-m venv .venv" not in of_cuda_12
    assert "constraints.txt" not in of_cuda_12, "those are of CUDA 13"
    assert ".venv/bin/python -m gpu_check" in _make("gpu-check")
    own = _make("gpu-check", "GPU_PYTHON=python3")
    assert "python3 -m gpu_check" in own
    assert "venv" not in own


def test_the_packages_for_older_drivers_are_those_of_cuda_12() -> None:
    lines = (ROOT / "benchmarks" / "gpu_check" / "requirements-cuda12.txt").read_text(encoding="utf-8").splitlines()
    packages = [line.partition(" ")[0] for line in lines if not line.startswith("#")]
    assert "nvidia-cuda-nvrtc-cu12" in packages
    assert "torch>=2.4,<2.11" in packages  # what PyPI has from 2.11 on wants cuda-bindings 13
    of_engines = next(line for line in (ROOT / "pyproject.toml").open(encoding="utf-8") if "tensorrt-cu12 = [" in line)
    assert {package for package in packages if f'"{package}"' in of_engines} == {"cuda-python>=12.9.1,<13"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "everything"], "--only is 'everything', expected one of tests, resize"),
        (["--device", "cpu"], "--device is 'cpu', expected cuda or cuda:N"),
    ],
)
def test_wrong_arguments_give_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_help_tells_every_check_and_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for check in CHECKS.values():
        assert f"{check.title} ({check.seconds} s)" in text
    assert len({check.work for check in CHECKS.values()}) == len(CHECKS)


def test_the_documentation_tells_every_check_and_the_sum_of_the_limits() -> None:
    text = (ROOT / "docs" / "tensorrt.md").read_text()
    assert all(f"`{name}`" in text for name in CHECKS)
    of_engines, others = (
        sum(check.seconds for name, check in CHECKS.items() if name.startswith("engine") is wanted) // 60
        for wanted in (True, False)
    )
    assert f"add up to {others} minutes, and to {of_engines} more with TensorRT" in text


def test_checks_are_chosen_in_their_order() -> None:
    assert [check.name for check in choose([])] == list(CHECKS)
    assert [check.name for check in choose(["sampler", "calls"])] == ["calls", "sampler"]
    with pytest.raises(OptionError, match="`only` is 'x', expected one of tests, resize"):
        choose(["x"])
    with pytest.raises(OptionError, match="`device` is 'cpu', expected cuda or cuda:N"):
        find_gpu("cpu")


@pytest.mark.parametrize(
    ("work", "status", "reason"),
    [
        (lambda _: {"ms": 2.0}, "passed", ""),
        (_raise(CheckFailedError("too slow")), "failed", "too slow"),
        (_raise(SkippedError("no compute-sanitizer")), "skipped", "no compute-sanitizer"),
        (_raise(MissingPackageError("this check needs torch")), "skipped", "this check needs torch"),
        (_raise(DeviceError("CUDA says: out of memory")), "failed", "DeviceError: CUDA says: out of memory"),
        (_raise(ZeroDivisionError("division by zero")), "failed", "ZeroDivisionError: division by zero"),
    ],
)
def test_every_end_of_a_check_is_an_outcome(work: Any, status: str, reason: str) -> None:
    outcome = perform(_check(work), SITUATION)
    assert outcome.status == status
    assert outcome.reason.startswith(reason)
    assert outcome.figures == ({"ms": 2.0} if status == "passed" else {})


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (86, CheckFailedError, "memcheck: Invalid __global__ read"),
        (resize.WRONG, CheckFailedError, "under memcheck: 12.000 levels off"),
        (1, SkippedError, "compute-sanitizer doesn't work here: 12.000 levels off"),
        (0, None, ""),
    ],
)
def test_what_compute_sanitizer_ends_with_is_told_apart(
    status: int, kind: type[Exception] | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho Invalid __global__ read\necho 12.000 levels off >&2\nexit {status}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if kind is None:
        assert check_memory_accesses(SITUATION) == {"memcheck": "Invalid __global__ read"}
    else:
        with pytest.raises(kind, match=reason):
            check_memory_accesses(SITUATION)


def test_without_compute_sanitizer_its_check_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SkippedError, match="compute-sanitizer is not on the PATH"):
        check_memory_accesses(SITUATION)


def test_what_is_demanded_must_hold() -> None:
    demand([1], "an empty list")
    with pytest.raises(CheckFailedError, match="an empty list"):
        demand([], "an empty list")


CHILD = """
import json, os, signal, sys, time
from pathlib import Path
name, target, options = sys.argv[1:]
if name == "passes":
    from gpu_check.apart import from_text
    Path(target).write_text(json.dumps({"name": name, "status": "passed", "reason": str(from_text(options).images)}))
elif name == "hangs":
    pid = os.fork()
    if pid:
        Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {pid}")
    time.sleep(60)
elif name == "crashes":
    print("about to crash", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
elif name == "exits":
    sys.exit(3)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module that stands for `gpu_check.apart` in the process of a check."""
    (tmp_path / "child_of_check.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    return "child_of_check"


def test_a_check_has_a_process_of_its_own_and_gets_the_options(child: str) -> None:
    outcome = apart.perform_apart(
        Check("passes", "", 30, _raise(AssertionError())), CheckOptions(images=Path("x/y")), child
    )
    assert (outcome.status, outcome.reason) == ("passed", str(Path("x/y")))


def test_a_check_that_hangs_is_ended_with_all_that_it_started(child: str, tmp_path: Path) -> None:
    outcome = apart.perform_apart(Check("hangs", "", 2, _raise(AssertionError())), CheckOptions(), child)
    assert (outcome.status, outcome.reason) == ("failed", "it took longer than 2 s")
    for pid in (tmp_path / "pids").read_text().split():
        for _ in range(100):  # the second one is nobody's child any more: it goes when the system comes to it
            if not Path("/proc", pid).exists() or " Z " in Path("/proc", pid, "stat").read_text():
                break
            time.sleep(0.05)
        else:
            raise AssertionError(f"process {pid} lives on")


def test_a_crash_is_a_failure_and_ends_nothing_else(child: str) -> None:
    crashed = apart.perform_apart(Check("crashes", "", 30, _raise(AssertionError())), CheckOptions(), child)
    assert (crashed.status, crashed.reason) == ("failed", "it was ended by SIGSEGV: about to crash")
    left = apart.perform_apart(Check("exits", "", 30, _raise(AssertionError())), CheckOptions(), child)
    assert left.reason == "it ended with status 3"


def test_options_reach_the_other_process_unchanged() -> None:
    options = CheckOptions(only=("calls",), device="cuda:1", output=Path("a.json"))
    assert apart.from_text(apart._to_text(options)) == options
    assert apart.from_text(apart._to_text(CheckOptions())) == CheckOptions()


@pytest.fixture
def on_a_t4(monkeypatch: pytest.MonkeyPatch) -> dict[str, Outcome]:
    """Let the command find a T4, and each check end as it stands here (default: passed)."""
    ends: dict[str, Outcome] = {}
    monkeypatch.setattr(cli, "find_gpu", lambda device: T4)
    monkeypatch.setattr(
        cli,
        "perform_apart",
        lambda check, options: ends.get(check.name, Outcome(check.name, "passed", "", 1.0, {"ms": 2})),
    )
    return ends


def test_results_are_written_and_a_failure_is_status_1(
    on_a_t4: dict[str, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a.json"
    assert main(["--output", str(target)]) == 0
    content = json.loads(target.read_text())
    assert content["gpu"] == {"name": "Tesla T4", "capability": "7.5", "memory_mb": (16 << 30) / 1e6}
    assert [check["name"] for check in content["checks"]] == list(CHECKS)
    assert content["checks"][0] == {
        "name": "tests",
        "status": "passed",
        "reason": "",
        "seconds": 1.0,
        "figures": {"ms": 2},
    }
    on_a_t4["calls"] = Outcome("calls", "skipped", "no torch")
    assert main(["--output", str(target)]) == 0
    on_a_t4["calls"] = Outcome("calls", "failed", "labels differs")
    assert main(["--output", str(target)]) == 1
    assert "failed  calls" in capsys.readouterr().out
    assert json.loads(target.read_text())["checks"][3]["reason"] == "labels differs"


def test_a_part_of_the_checks_or_ones_own_checkpoint_overwrites_no_whole_run(
    on_a_t4: dict[str, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "gpu-check-tesla-t4.json"
    assert result_path(T4).name == target.name
    assert result_path(replace(T4, name="NVIDIA H100 80GB HBM3")).name == "gpu-check-nvidia-h100-80gb-hbm3.json"
    monkeypatch.setattr(cli, "result_path", lambda gpu: target)
    for own in (["--only", "calls"], ["--weights", "own.pth"], ["--annotations", "own.json"], ["--images", "own"]):
        assert main(own) == 0
        assert not target.exists()
    assert main(["--device", "cuda:0"]) == 0
    assert target.exists()


def test_a_result_that_cannot_be_written_is_told_before_anything_runs(
    on_a_t4: dict[str, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "perform_apart", lambda check, options: pytest.fail("a check was run"))
    (tmp_path / "file").touch()
    assert main(["--output", str(tmp_path / "file" / "a.json")]) == 2
    assert "file" in capsys.readouterr().err


def test_the_table_shows_figures_of_any_kind() -> None:
    text = format_outcome(
        Outcome("sampler", "passed", "", 12.34, {"fused": {"ms": 0.12341, "MB": 8}, "list": ["a", 1.5]})
    )
    assert text.splitlines() == [
        "passed  sampler            12.3 s",
        " " * 10 + "fused: ms 0.1234, MB 8",
        " " * 10 + "list: a, 1.5",
    ]
    assert "no torch" in format_outcome(Outcome("a", "skipped", "no torch"))
