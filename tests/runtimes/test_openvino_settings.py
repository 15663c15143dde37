"""What OpenVINO is asked for: arithmetic, calls side by side, cache; and what a processor has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

from rtdetr_deploy import DeviceError, OptionError, OutputError, Predictor, open_runtime  # noqa: E402
from rtdetr_deploy.artifacts.bf16 import Bf16Check  # noqa: E402
from rtdetr_deploy.artifacts.metadata import METADATA_KEY  # noqa: E402
from rtdetr_deploy.runtimes import RuntimeOptions, ov_settings  # noqa: E402
from rtdetr_deploy.runtimes.ov_settings import choose_precision, count_slots, make_settings  # noqa: E402
from rtdetr_deploy.runtimes.processor import CPUINFO, find_instruction_sets, instruction_sets  # noqa: E402


class Core:
    """Devices that compute in what they say."""

    def __init__(self, **devices: list[str]) -> None:
        self.devices = devices
        self.available_devices = list(devices)

    def get_property(self, name: str, _: str) -> list[str]:
        return self.devices[name]


class Compiled:
    """A compiled model that tells its streams, if it has any, and its optimal number of requests."""

    def __init__(self, streams: int | None = 4) -> None:
        self.streams = streams

    def get_property(self, name: str) -> int:
        if name == "OPTIMAL_NUMBER_OF_INFER_REQUESTS":
            return 4
        if self.streams is None:
            raise RuntimeError("not supported property NUM_STREAMS")
        return self.streams


class Info:
    """Metadata of a file that keeps its detections in some arithmetics."""

    def __init__(self, *arithmetics: str) -> None:
        self.arithmetics = arithmetics


INTEL = Core(CPU=["FP32", "BF16", "INT8"], GPU=["FP32", "FP16"], NPU=["FP16"])


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov_settings, "instruction_sets", lambda: frozenset({"AVX-512", "BF16"}))


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize(
    ("precision", "device", "arithmetics", "expected"),
    [
        (None, "CPU", ("bf16",), "fp32"),
        (None, "GPU", (), "fp32"),
        (None, "NPU", (), None),
        ("fp32", "AUTO:GPU,CPU", (), "fp32"),
        ("bf16", "CPU", (), "bf16"),
        ("fp16", "GPU.0", (), "fp16"),
        ("auto", "CPU", ("fp32", "bf16"), "bf16"),
        ("auto", "CPU", ("fp32",), "fp32"),
        ("auto", "CPU", (), "fp32"),
        ("auto", "GPU", ("bf16",), "fp32"),
        ("auto", "MULTI:CPU,GPU", ("bf16",), "fp32"),
        ("auto", "AUTO:-GPU,-GPU.0,-NPU", ("bf16",), "bf16"),
        ("auto", "AUTO:-GPU", ("bf16",), None),
        ("auto", "NPU", ("bf16",), None),
    ],
)
def test_arithmetic_is_what_devices_have_and_the_file_bears(
    precision: Any, device: str, arithmetics: tuple[str, ...], expected: str | None
) -> None:
    core = Core(**INTEL.devices, **{"GPU.0": ["FP32", "FP16"]})
    info: Any = Info(*arithmetics)
    assert choose_precision(RuntimeOptions(precision=precision), device, core, info) == expected


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize(
    ("precision", "device", "lacking"),
    [("fp16", "CPU", "CPU"), ("bf16", "GPU", "GPU"), ("fp32", "NPU", "NPU"), ("bf16", "AUTO", "GPU")],
)
def test_arithmetic_that_a_device_lacks_is_refused(precision: Any, device: str, lacking: str) -> None:
    told = f'`precision="{precision}"` needs {precision.upper()} arithmetic, which the {lacking} here doesn\'t have'
    with pytest.raises(DeviceError, match=told):
        choose_precision(RuntimeOptions(precision=precision), device, INTEL, None)


def test_bf16_that_would_be_emulated_is_refused_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov_settings, "instruction_sets", lambda: frozenset({"AVX-512"}))
    info: Any = Info("bf16")
    assert choose_precision(RuntimeOptions(precision="auto"), "CPU", INTEL, info) == "fp32"
    with pytest.raises(DeviceError, match="needs BF16 arithmetic, which the CPU here doesn't have"):
        choose_precision(RuntimeOptions(precision="bf16"), "CPU", INTEL, info)


def test_a_model_that_computes_in_something_else_is_refused(small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtdetr_deploy.runtimes.ov.read_arithmetic", lambda compiled: "bf16")
    with pytest.raises(DeviceError, match=r"small.onnx was to be computed in fp32, but CPU computes in bf16"):
        open_runtime(small_onnx, "openvino")


@pytest.mark.parametrize("setting", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(("limit", "found"), [("avx2", False), ("AVX512_CORE_VNNI", False), ("AVX512_CORE_AMX", True)])
@pytest.mark.usefixtures("bf16")
def test_instruction_sets_that_are_switched_off_have_no_bf16(
    setting: str, limit: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv(setting, limit)
    info: Any = Info("bf16")
    assert choose_precision(RuntimeOptions(precision="auto"), "CPU", INTEL, info) == ("bf16" if found else "fp32")


def test_auto_needs_to_know_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov_settings, "instruction_sets", lambda: None)
    info: Any = Info("bf16")
    assert choose_precision(RuntimeOptions(precision="auto"), "CPU", INTEL, info) == "fp32"
    assert choose_precision(RuntimeOptions(precision="bf16"), "CPU", INTEL, info) == "bf16"


@pytest.mark.parametrize(("precision", "marked"), [("fp32", False), ("bf16", True), ("fp16", True), (None, True)])
def test_what_a_file_keeps_in_fp32_is_marked_for_every_lower_precision(
    precision: str | None, marked: bool, small_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("rtdetr_deploy.runtimes.ov.choose_precision", lambda *_: precision)
    monkeypatch.setattr("rtdetr_deploy.runtimes.ov.make_settings", lambda *_: {})
    monkeypatch.setattr("rtdetr_deploy.runtimes.ov.read_arithmetic", lambda compiled: precision)
    monkeypatch.setattr("rtdetr_deploy.runtimes.ov.keep_fp32", lambda model, names: given.append(names))
    runtime: Any = open_runtime(small_onnx, "openvino")
    assert given == ([runtime.info.fp32_nodes] if marked else [])
    runtime.close()


@pytest.mark.skipif("BF16" not in (instruction_sets() or ()), reason="this processor has no BF16")
def test_what_runs_is_shown(small_onnx: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(small_onnx)
    with Predictor(small_onnx) as predictor:
        found: Any = predictor.info
    stored = replace(found, bf16=Bf16Check(1.0, 64, 1280))
    next(entry for entry in model.metadata_props if entry.key == METADATA_KEY).value = stored.to_json()
    allowed = tmp_path / "allowed.onnx"
    onnx.save(model, allowed)
    with Predictor(small_onnx, precision="bf16") as predictor:
        assert predictor.runtime.endswith("(CPU, BF16)")
        assert predictor.arithmetic == "bf16"
        assert predictor.info.runtime == predictor.runtime
    for path, expected in ((allowed, "bf16"), (small_onnx, "fp32")):
        with Predictor(path, precision="auto") as predictor:
            assert (predictor.arithmetic, predictor.runtime.partition(" ")[0]) == (expected, "OpenVINO")


@pytest.mark.parametrize(
    ("how", "settings", "slots"),
    [
        ({}, {"PERFORMANCE_HINT": "LATENCY"}, 1),
        ({"slots": 1}, {"PERFORMANCE_HINT": "LATENCY"}, 1),
        ({"hint": "throughput"}, {"PERFORMANCE_HINT": "THROUGHPUT"}, 4),
        ({"slots": 3}, {"PERFORMANCE_HINT": "THROUGHPUT", "PERFORMANCE_HINT_NUM_REQUESTS": 3}, 3),
        (
            {"hint": "throughput", "slots": 1},
            {"PERFORMANCE_HINT": "THROUGHPUT", "PERFORMANCE_HINT_NUM_REQUESTS": 1},
            1,
        ),
        ({"threads": 1}, {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}, 1),
    ],
)
def test_the_hint_and_the_calls_side_by_side_fit_each_other(
    how: dict[str, Any], settings: dict[str, Any], slots: int
) -> None:
    options = RuntimeOptions(**how)
    assert make_settings(options, "CPU", None) == settings
    assert count_slots(options, Compiled()) == slots


def test_slots_are_no_more_than_the_calls_that_are_computed_at_once(small_onnx: Path) -> None:
    assert count_slots(RuntimeOptions(slots=4), Compiled(2)) == 2
    assert count_slots(RuntimeOptions(slots=4), Compiled(None)) == 4
    runtime: Any = open_runtime(small_onnx, "openvino", RuntimeOptions(slots=4, threads=4))
    assert runtime.slots == runtime._compiled.get_property("NUM_STREAMS")
    runtime.close()


def test_options_that_contradict_each_other_or_are_unknown_are_named() -> None:
    with pytest.raises(OptionError, match='`slots` is 2, but `hint="latency"` gives all cores to one call'):
        RuntimeOptions(slots=2, hint="latency")
    with pytest.raises(OptionError, match="`slots` is 4, but `threads` is 1: each call needs a thread"):
        RuntimeOptions(slots=4, threads=1)
    bad: tuple[tuple[dict[str, Any], str], ...] = (
        ({"precision": "int8"}, "`precision` is 'int8', expected fp32, bf16, fp16 or auto"),
        ({"hint": "speed"}, "`hint` is 'speed', expected latency or throughput"),
    )
    for how, message in bad:
        with pytest.raises(OptionError, match=message):
            RuntimeOptions(**how)


@pytest.mark.parametrize("fixture", ["small_onnx", "small_xml"])
def test_compiled_models_are_kept_and_damaged_ones_made_again(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: Path = request.getfixturevalue(fixture)
    cache = tmp_path / "cache" / "models"
    spec, expected = None, None
    for damage in (False, False, True):
        if damage:
            for file in cache.iterdir():
                file.chmod(0o600)
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        runtime: Any = open_runtime(model, "openvino", RuntimeOptions(cache=cache))
        loaded = runtime._compiled.get_property("LOADED_FROM_CACHE")
        spec = runtime.inputs[0]
        shape = tuple(axis or 1 for axis in spec.shape)
        outputs = runtime.run({spec.name: np.full(shape, 0.5).astype(spec.dtype)})
        assert loaded == (expected is not None and not damage)
        assert expected is None or all(np.array_equal(outputs[name], expected[name]) for name in outputs)
        expected = outputs
        runtime.close()
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_can_not_be_written_is_named(small_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"can't write .*file: .*file is not a folder"):
        open_runtime(small_onnx, "openvino", RuntimeOptions(cache=tmp_path / "file"))


def test_a_cache_that_can_not_be_made_is_named(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(OutputError, match=r"can't write .*cache: No space left on device"):
        open_runtime(small_onnx, "openvino", RuntimeOptions(cache=tmp_path / "cache"))


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("flags : fpu avx2 fma", {"AVX2"}),
        ("flags : avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16", {"AVX-512", "VNNI", "BF16"}),
        ("flags : avx2 fma avx_vnni", {"AVX2", "VNNI"}),
        ("Features : fp asimd bf16", {"NEON", "BF16"}),
        ("flags : avx512f", set()),
    ],
)  # fmt: skip
def test_instruction_sets_are_what_the_flags_say(flags: str, found: set[str]) -> None:
    assert set(find_instruction_sets(f"processor : 0\n{flags}\n\nprocessor : 1\nflags : none\n") or ()) == found


def test_systems_without_a_list_of_flags_are_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_instruction_sets("processor : 0\n") is None
    monkeypatch.setattr("rtdetr_deploy.runtimes.processor.CPUINFO", tmp_path / "none")
    instruction_sets.cache_clear()
    assert instruction_sets() is None
    monkeypatch.undo()
    instruction_sets.cache_clear()
    assert (instruction_sets() is not None) == CPUINFO.exists()


def test_weights_of_xml_files_stay_readable_after_their_memory_is_given_back(small_xml: Path) -> None:
    runtime: Any = open_runtime(small_xml)
    kept = runtime._weights
    content = small_xml.with_suffix(".bin").read_bytes()
    kept.forget()
    assert kept.array.tobytes() == content
    images = np.zeros((1, 128, 160, 3), np.uint8)
    expected = runtime.run({"images": images})
    kept.forget()
    assert all(np.array_equal(array, expected[name]) for name, array in runtime.run({"images": images}).items())
    runtime.close()


def test_what_runs_a_file_is_not_stored(small_onnx: Path) -> None:
    with Predictor(small_onnx) as predictor:
        info: Any = predictor.info
        assert info.runtime == predictor.runtime
        assert '"runtime"' not in info.to_json()
        assert info == replace(info, runtime=None)
