"""rtdetr-bench profile: nodes, parts, and the floor of the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rtdetr_bench import ProfileOptions, study_profile
from rtdetr_bench.cli import main
from rtdetr_bench.profiling import peak, study
from rtdetr_bench.profiling.nodes import profile
from rtdetr_bench.profiling.peak import convolutions, measure_peaks
from rtdetr_bench.profiling.study import read_work
from rtdetr_deploy import ArtifactError, DeviceError, OptionError, open_runtime
from rtdetr_deploy.runtimes import RuntimeOptions, cores, ov_settings
from rtdetr_deploy.runtimes.processor import instruction_sets

PEAKS = {"fp32": 100.0, "bf16": 200.0, "int8": 400.0}


@pytest.fixture
def known_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "measure_peaks", lambda *_: PEAKS)


@pytest.mark.usefixtures("known_peaks")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_profile_has_all_parts_operators_and_the_floor(
    runtime: str, small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(runtime)
    target = tmp_path / "profile.json"
    words = ["profile", "--engine", str(small_onnx), "--runtime", runtime, "--runs", "3", "--top", "1000"]
    assert main([*words, "--json", str(target)]) == 0
    text = capsys.readouterr().out
    for word in (
        "backbone",
        "encoder",
        "decoder layer 0",
        "selection",
        "peak of convolutions",
        "of the peak is reached",
    ):
        assert word in text
    found = json.loads(target.read_text())["profile"]
    nodes = found["longest"]
    assert found["nodes_ms"] == pytest.approx(sum(node["ms"] for node in nodes), rel=0.01)
    assert sum(share["nodes"] for share in found["parts"]) == len(nodes) == found["nodes"]
    assert [node["ms"] for node in nodes] == sorted((node["ms"] for node in nodes), reverse=True)
    assert len(text[text.index("nodes that take longest") :].strip().splitlines()) == 1 + len(nodes)
    assert sum(share["ms"] for share in found["operators"]) == pytest.approx(found["nodes_ms"], rel=0.01)
    assert found["floor_ms"] == pytest.approx(found["gflops"] / PEAKS["fp32"] * 1e3, rel=0.01)
    assert found["reached"] == pytest.approx(found["floor_ms"] / found["call_ms"], rel=0.01)
    convolutions = [node for node in nodes if node["operator"] in ("Conv", "Convolution")]
    assert len(convolutions) >= sum(node.op_type == "Conv" for node in onnx.load(str(small_onnx)).graph.node) * 0.9


def test_the_floor_counts_quantized_and_rounded_products_at_their_own_rates() -> None:
    flops = {"fp32": 2e9, "int8": 4e9}
    assert study._floor(flops, PEAKS, "fp32") == pytest.approx(20 + 10)
    assert study._floor(flops, PEAKS, "bf16") == pytest.approx(10 + 10)
    assert study._floor(flops, {"fp32": 100.0, "int8": 400.0}, "bf16") == pytest.approx(20 + 10)


def test_work_is_counted_by_part_and_precision(tmp_path: Path) -> None:
    for quantized, kind in ((False, "fp32"), (True, "int8")):
        path = tmp_path / f"{kind}.onnx"
        onnx.save(convolutions(quantized=quantized), path)
        work = read_work(path)
        assert work is not None
        assert {name: value / 1e9 for part in work.values() for name, value in part.items()} == {
            kind: pytest.approx(peak.GFLOP)
        }
    assert read_work(tmp_path / "model.xml") is None


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_peaks_are_rates_of_the_convolutions(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(runtime)
    for name, value in (("CHANNELS", 16), ("CELLS", 8), ("CALLS", 1)):
        monkeypatch.setattr(peak, name, value)
    peaks = measure_peaks(runtime, threads=1)
    assert {"fp32", "int8"} <= set(peaks) <= set(PEAKS)
    assert all(np.isfinite(rate) and rate > 0 for rate in peaks.values())


THREADS = 1
SEEN = ("session.force_spinning_stop", "session.intra_op.allow_spinning", "session.disable_quant_qdq",
        "session.x64quantprecision")  # fmt: skip


def _ort_settings(settings: Any) -> dict[str, Any]:
    """Return what can be read of ONNX Runtime's settings, but for the profile itself."""
    skipped = ("enable_profiling", "profile_file_prefix")
    names = [name for name in dir(settings) if not name.startswith("_") and name not in skipped]
    values = {name: getattr(settings, name) for name in names if not callable(getattr(settings, name))}
    for name in SEEN:
        try:
            values[name] = settings.get_session_config_entry(name)
        except RuntimeError:  # not set
            values[name] = None
    return values


@pytest.mark.parametrize("threads", [None, THREADS])
@pytest.mark.parametrize("quantized", [False, True])
def test_onnx_runtime_s_profile_and_peak_are_of_the_predictor_s_session(
    quantized: bool, threads: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(cores, "cpu_quota", lambda: 1.0)  # as in a container: `default_threads` limits them
    for name, value in (("CHANNELS", 16), ("CELLS", 8), ("CALLS", 1)):
        monkeypatch.setattr(peak, name, value)
    path = tmp_path / "model.onnx"
    onnx.save(convolutions(quantized=quantized), path)
    original, seen = onnxruntime.InferenceSession, []

    def session(model: Any, settings: Any, **options: Any) -> Any:
        seen.append((_ort_settings(settings), options["providers"]))
        return original(model, settings, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    open_runtime(path, "onnxruntime", RuntimeOptions(threads=threads)).close()
    profile(path, "onnxruntime", 1, threads=threads)
    peak._rate_onnxruntime(path, threads)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0]["session.intra_op.allow_spinning"] == "0"
    assert seen[0][0]["intra_op_num_threads"] == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_s_profile_is_of_the_predictor_s_model(
    precision: Any, small_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    from rtdetr_deploy.runtimes import ov
    from rtdetr_deploy.runtimes.ov_precision import keep_fp32

    if precision == "bf16" and "BF16" not in (instruction_sets() or ()):
        pytest.skip("the processor has no BF16")
    original = ov.Loaded.compile
    seen: list[Any] = []
    kept: list[int] = []

    def compiled(self: ov.Loaded, core: Any, device: str, settings: Any) -> Any:
        seen.append((device, dict(settings)))
        return original(self, core, device, settings)

    def keep(model: Any, names: Any) -> int:
        kept.append(keep_fp32(model, names))
        return kept[-1]

    monkeypatch.setattr(ov.Loaded, "compile", compiled)
    monkeypatch.setattr(ov, "keep_fp32", keep)
    open_runtime(small_onnx, "openvino", RuntimeOptions(threads=THREADS, precision=precision)).close()
    profile(small_onnx, "openvino", 1, threads=THREADS, precision=precision)
    (device, plain), measured = seen
    assert measured == (device, {**plain, "PERF_COUNT": True})
    assert plain["INFERENCE_NUM_THREADS"] == THREADS
    if precision == "bf16":
        assert kept[0] == kept[1] > 0
    else:
        assert kept == []


def test_bf16_is_not_profiled_where_it_would_be_emulated(small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(ov_settings, "instruction_sets", lambda: frozenset({"AVX-512"}))
    with pytest.raises(DeviceError, match='`precision="bf16"` needs BF16 arithmetic, which the CPU here has not'):
        profile(small_onnx, "openvino", 1, precision="bf16")


def test_both_forms_of_the_convolutions_are_valid_models() -> None:
    onnx.checker.check_model(convolutions())
    onnx.checker.check_model(convolutions(quantized=True))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_damaged_file_is_named(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x01broken")
    with pytest.raises(ArtifactError, match="broken.onnx is not a loadable ONNX model: its content is damaged"):
        profile(path, runtime, 1)
    with pytest.raises(ArtifactError, match=r"broken.onnx is not an ONNX model"):
        study_profile(ProfileOptions(path))


@pytest.mark.parametrize(
    ("runtime", "told"),
    [
        ("onnxruntime", "strange.onnx can't be profiled in onnxruntime: .*Unheard"),
        ("openvino", "strange.onnx can't be loaded by OpenVINO"),
    ],
)
def test_a_file_that_the_runtime_can_not_load_is_named(runtime: str, told: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    model, path = convolutions(), tmp_path / "strange.onnx"
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match=told):
        profile(path, runtime, 1)


def test_an_open_input_size_is_refused(tmp_path: Path) -> None:
    model = convolutions()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "height"
    path = tmp_path / "open.onnx"
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match=r"open.onnx leaves its input size open"):
        profile(path, "onnxruntime", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": "tensorrt"}, "`runtime` is 'tensorrt', expected one of onnxruntime, openvino"),
        ({"precision": "fp8"}, "`precision` is 'fp8', expected fp32 or bf16"),
        ({"precision": "bf16"}, '`precision="bf16"` is for OpenVINO; add `runtime="openvino"`, or leave it out'),
        ({"runs": 0}, "`runs` is 0, expected a number from 1 to 1000000"),
        ({"top": -1}, "`top` is -1, expected a number of nodes, 0 or more"),
    ],
)
def test_wrong_options_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        ProfileOptions(Path("model.onnx"), **changes)
    assert str(error.value) == message
