"""Which runtime opens an `.onnx` file for which none was named, where several are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper

from rtdetr_deploy import ArtifactError, OptionError
from rtdetr_deploy.runtimes import RuntimeOptions, choose_runtime, table
from rtdetr_deploy.runtimes.table import DECISIONS, refuse_unused

PROCESSORS = {
    "AVX-512": frozenset({"AVX2", "AVX-512", "VNNI", "BF16"}),
    "AVX2": frozenset({"AVX2"}),
    "unknown": None,
    "NEON": frozenset({"NEON", "BF16"}),
}


def _model(path: Path, *, int8: bool) -> Path:
    kind = "DequantizeLinear" if int8 else "Identity"
    inputs = ["x", "s"] if int8 else ["x"]
    typed = TensorProto.INT8 if int8 else TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, kind, [1]) for name, kind in (("x", typed), ("y", TensorProto.FLOAT)))
    scale = [helper.make_tensor("s", TensorProto.FLOAT, [], [1.0])] if int8 else []
    graph = helper.make_graph([helper.make_node(kind, inputs, ["y"])], "g", [x], [y], scale)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that says which packages there are, and what the processor has."""

    def choose(*packages: str, processor: str = "AVX-512") -> None:
        monkeypatch.setattr(table, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(table, "instruction_sets", lambda: PROCESSORS[processor])

    return choose


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_measured_one_is_chosen(int8: bool, processor: str, installed: Any, tmp_path: Path) -> None:
    installed("onnxruntime", "openvino", processor=processor)
    expected = "openvino" if int8 and processor in ("AVX-512", "AVX2") else "onnxruntime"
    path = _model(tmp_path / "m.onnx", int8=int8)
    for model in (path, path.read_bytes()):
        assert choose_runtime(model, RuntimeOptions()) == expected
        assert choose_runtime(model, RuntimeOptions(device="cpu", threads=1, precision="fp32")) == expected


def test_openvino_is_chosen_only_where_it_was_faster() -> None:
    for decision in DECISIONS:
        assert decision.runtime != "openvino" or max(decision.ratios) < 1.0


@pytest.mark.parametrize("int8", [True, False])
def test_the_one_that_is_installed_is_chosen(int8: bool, installed: Any, tmp_path: Path) -> None:
    path = _model(tmp_path / "m.onnx", int8=int8)
    for package in ("onnxruntime", "openvino"):
        installed(package)
        assert choose_runtime(path, RuntimeOptions()) == package
    installed()
    assert choose_runtime(path, RuntimeOptions()) in ("onnxruntime", "openvino")  # which names its package


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"device": "cuda:1"}, "onnxruntime"),
        ({"device": "GPU"}, "openvino"),
        ({"device": "auto"}, "openvino"),
        ({"precision": "bf16"}, "openvino"),
        ({"precision": "auto"}, "openvino"),
        ({"hint": "throughput"}, "onnxruntime"),
        ({"slots": 2}, "onnxruntime"),
        ({"slots": 2, "cache": "folder"}, "openvino"),
        ({"cache": "folder"}, "openvino"),
        ({"blocking_sync": True}, "onnxruntime"),
    ],
)
def test_options_that_one_alone_takes_choose_it(
    how: dict[str, Any], expected: str, installed: Any, tmp_path: Path
) -> None:
    installed("onnxruntime", "openvino")
    assert choose_runtime(_model(tmp_path / "m.onnx", int8=False), RuntimeOptions(**how)) == expected


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("onnxruntime", {"precision": "bf16"}, '`precision="bf16"` is for openvino; onnxruntime runs this model'),
        ("onnxruntime", {"cache": Path("x")}, "`cache` is for openvino; onnxruntime runs this model"),
        ("torch", {"hint": "latency"}, "`hint` is for onnxruntime and openvino; torch runs this model"),
        ("torch", {"cache": Path("x")}, "`cache` is for openvino; torch runs this model"),
        ("torch", {"slots": 2}, "`slots` is for onnxruntime, openvino and tensorrt; torch runs this model"),
        ("openvino", {"blocking_sync": True}, "`blocking_sync` is for tensorrt; openvino runs this model"),
        ("tensorrt", {"precision": "fp32"}, '`precision="fp32"` is for onnxruntime, openvino and torch; tensorrt'),
        ("openvino", {"size": (64, 64)}, "`size` is for checkpoints; what openvino opens has its own"),
    ],
)
def test_options_that_would_be_ignored_are_refused(name: str, how: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        refuse_unused(name, RuntimeOptions(**how))


def test_damaged_files_are_named_when_they_are_looked_into(installed: Any, tmp_path: Path) -> None:
    installed("onnxruntime", "openvino")
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(ArtifactError, match=r"m.onnx is not a loadable ONNX model: its content is damaged"):
        choose_runtime(tmp_path / "m.onnx", RuntimeOptions())


def test_choosing_imports_no_runtime(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = _model(tmp_path / "m.onnx", int8=True)
    code = (
        "import sys; from pathlib import Path; from rtdetr_deploy.runtimes import choose_runtime, RuntimeOptions; "
        f"choose_runtime(Path({str(path)!r}), RuntimeOptions()); "
        "print([name for name in ('openvino', 'onnxruntime', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_runtime_that_an_option_needs_and_is_missing_is_named_with_its_command(installed: Any) -> None:
    installed("onnxruntime")
    told = r"is for openvino; onnxruntime runs this model; openvino is not installed: pip install .*openvino"
    with pytest.raises(OptionError, match=told):
        refuse_unused("onnxruntime", RuntimeOptions(precision="bf16"))
