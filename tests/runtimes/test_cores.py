"""How many cores a process may use, and what ONNX Runtime makes of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from rtdetr_deploy import OptionError, Predictor, open_runtime
from rtdetr_deploy.runtimes import ParallelRuntime, RuntimeOptions, cores, ort
from rtdetr_deploy.runtimes.onnx_file import Graph, Node


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "150000 100000"}, "0::/\n", 1.5),
        ({"cpu.max": "max 100000"}, "0::/\n", None),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 4.0),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, "0::/a/b\n", 0.5),
        ({"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"}, "4:cpuacct,cpu:/a\n", 2.0),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, "4:cpu:/a\n", None),
        ({"cpu.max": "no number"}, "0::/\n", None),
        ({}, "3:cpuset:/\nnonsense\n", None),
    ],
)
def test_quotas_of_both_versions_are_read(
    files: dict[str, str], membership: str, expected: float | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    (tmp_path / "membership").write_text(membership)
    assert cores.cpu_quota(tmp_path / "groups", tmp_path / "membership") == expected


def test_no_control_groups_are_no_limit(tmp_path: Path) -> None:
    assert cores.cpu_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("bound", "quota", "usable", "threads"), [(8, None, 8, None), (4, None, 4, 4), (8, 2.9, 2, 2), (8, 0.5, 1, 1)]
)
def test_threads_fit_what_the_process_may_use(
    bound: int, quota: float | None, usable: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cores, "bound_cores", lambda: bound)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert cores.usable_cores() == usable
    assert cores.default_threads() == threads


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_the_process_s_affinity_counts() -> None:
    assert cores.bound_cores() == len(os.sched_getaffinity(0))


def _settings(options: RuntimeOptions, slots: int, graph: Graph | None = None) -> Any:
    return ort.session_options(options, graph or Graph(), slots)


@pytest.mark.parametrize(("threads", "slots", "expected"), [(4, 1, 4), (4, 2, 3), (4, 4, 1), (2, 4, 1)])
def test_calls_side_by_side_bring_threads_of_their_own(threads: int, slots: int, expected: int) -> None:
    assert _settings(RuntimeOptions(threads=threads), slots).intra_op_num_threads == expected


def test_the_cpu_alone_keeps_no_plan_of_a_call_s_memory() -> None:
    assert not _settings(RuntimeOptions(), 1).enable_mem_pattern
    assert not _settings(RuntimeOptions(device="cpu"), 1).enable_mem_pattern
    assert _settings(RuntimeOptions(device="cuda:1"), 1).enable_mem_pattern


def test_threads_sleep_unless_spinning_is_asked_for() -> None:
    key = "session.intra_op.allow_spinning"
    assert _settings(RuntimeOptions(), 1).get_session_config_entry(key) == "0"
    with pytest.raises(RuntimeError):  # left to ONNX Runtime, whose default is to spin
        _settings(RuntimeOptions(spinning=True), 1).get_session_config_entry(key)


def test_spinning_is_for_onnx_runtime(small_onnx: Path) -> None:
    with pytest.raises(OptionError, match="`spinning` is 1, expected True or False"):
        RuntimeOptions(spinning=1)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="`spinning` is for onnxruntime; openvino runs this model"):
        open_runtime(small_onnx, "openvino", RuntimeOptions(spinning=True))


def test_throughput_is_a_call_per_thread(small_onnx: Path) -> None:
    for options, expected in (
        (RuntimeOptions(), 1),
        (RuntimeOptions(slots=2), 2),
        (RuntimeOptions(hint="throughput", threads=3), 3),
        (RuntimeOptions(hint="throughput", threads=3, slots=2), 2),
    ):
        runtime = open_runtime(small_onnx, "onnxruntime", options)
        assert isinstance(runtime, ParallelRuntime)
        assert runtime.slots == expected
        runtime.close()


@pytest.mark.parametrize(("slots", "waits"), [(None, False), (1, True), (2, True)])
def test_calls_wait_where_their_number_was_given(slots: int | None, waits: bool, small_onnx: Path) -> None:
    runtime: Any = open_runtime(small_onnx, "onnxruntime", RuntimeOptions(slots=slots))
    with runtime._turns:
        for _ in range(runtime.slots - 1):
            runtime._turns.acquire()
        free = not waits or runtime._turns.acquire(blocking=False)
    assert free == (not waits)
    runtime.close()


def test_as_many_calls_run_as_there_are_slots(small_onnx: Path) -> None:
    with Predictor(small_onnx, 0.0, runtime="onnxruntime", slots=2) as predictor:
        runtime: Any = predictor._runtime
        session, lock = runtime._session, threading.Lock()
        meet, running, most = threading.Barrier(2), 0, 0

        class Counted:
            def run(self, *arguments: Any) -> Any:
                nonlocal running, most
                with lock:
                    running += 1
                    most = max(most, running)
                meet.wait(30)
                result = session.run(*arguments)
                with lock:
                    running -= 1
                return result

        runtime._session = Counted()
        frames = [np.full((20, 20, 3), level, np.uint8) for level in range(8)]
        found = list(predictor.stream(frames, batch=1))
        runtime._session = session
        assert most == predictor.slots == 2
        for frame, one in zip(frames, found, strict=True):
            assert np.allclose(one.boxes, predictor.detect(frame).boxes, atol=1e-3)


@pytest.mark.parametrize(
    ("processor", "exact"),
    [({"AVX2"}, True), ({"AVX2", "AVX-512"}, True), (None, True), ({"AVX2", "AVX-512", "VNNI"}, False)],
)
def test_integer_sums_are_exact_where_fast_ones_would_saturate(
    processor: set[str] | None, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "session.x64quantprecision"
    monkeypatch.setattr(ort, "instruction_sets", lambda: processor)
    int8 = Graph(makers={"x": Node("DequantizeLinear", ("x_int8", "scale"), ("x",))})
    for graph, expected in ((int8, exact), (Graph(), False)):
        settings = _settings(RuntimeOptions(), 1, graph)
        if expected:
            assert settings.get_session_config_entry(key) == "1"
        else:
            with pytest.raises(RuntimeError):  # not set
                settings.get_session_config_entry(key)
