"""What is OpenVINO's alone: its files, its devices, its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

from rtdetr_deploy import ArtifactError, DeviceError, OptionError, open_runtime  # noqa: E402
from rtdetr_deploy.runtimes import RuntimeOptions  # noqa: E402
from rtdetr_deploy.runtimes.onnx_file import read_graph  # noqa: E402


def test_metadata_of_onnx_files_is_what_onnx_runtime_reads(small_onnx: Path) -> None:
    one, other = open_runtime(small_onnx, "openvino"), open_runtime(small_onnx)
    assert one.metadata == other.metadata == read_graph(small_onnx).metadata
    assert one.metadata
    assert one.info == other.info
    assert one.outputs == other.outputs
    one.close()
    other.close()


def test_a_file_of_third_parties_has_no_info(small_onnx: Path, tmp_path: Path) -> None:
    model = openvino.Core().read_model(str(small_onnx))
    model.set_rt_info("YOLO", ["model_info", "model_type"])
    model.set_rt_info("{'0': 'cat'}", ["names"])
    openvino.save_model(model, str(tmp_path / "third.xml"), compress_to_fp16=True)
    runtime = open_runtime(tmp_path / "third.xml")
    assert runtime.info is None
    assert runtime.metadata["names"] == "{'0': 'cat'}"
    assert "model_info" not in runtime.metadata  # which is not a text, but a map
    assert [spec.name for spec in runtime.outputs] == ["labels", "boxes", "scores"]
    runtime.close()


def test_models_run_in_fp32_also_where_the_cpu_has_bf16(small_onnx: Path) -> None:
    runtime: Any = open_runtime(small_onnx, "openvino")
    assert runtime._compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert runtime.arithmetic == "fp32"
    runtime.close()


def test_files_that_are_not_models_are_one_clear_line(small_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    for text, message in (
        ("no model", "m.xml is not a model of OpenVINO: it is not XML"),
        ("<html></html>", "m.xml can't be loaded by OpenVINO: "),
    ):
        path.write_text(text)
        with pytest.raises(ArtifactError, match=message) as caught:
            open_runtime(path)
        assert "\n" not in str(caught.value)
    openvino.save_model(openvino.Core().read_model(str(small_onnx)), str(path))
    path.with_suffix(".bin").unlink()
    with pytest.raises(
        ArtifactError, match=r"m.xml needs its weights, m.bin, which is not beside it or is empty; copy"
    ):
        open_runtime(path)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda content: content[:-1], r"it has \d+ bytes instead of \d+"),
        (lambda content: bytes([content[0] ^ 1]) + content[1:], "it has other content"),
    ],
)
def test_weights_of_another_file_are_found_out(damage: Any, found: str, small_xml: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    path.write_bytes(small_xml.read_bytes())
    path.with_suffix(".bin").write_bytes(damage(small_xml.with_suffix(".bin").read_bytes()))
    with pytest.raises(ArtifactError, match=f"^m.bin is not what m.xml was written with: {found}; copy both files"):
        open_runtime(path)


def test_types_without_one_in_numpy_are_named() -> None:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "odd", values[:1], values[1:])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    with pytest.raises(ArtifactError, match=r"the ONNX model has x of type bf16\[1,3\], which is not supported"):
        open_runtime(content, "openvino")


@pytest.mark.parametrize("device", ["auto", "AUTO:CPU", "hetero:cpu", "AUTO:-GPU", "AUTO:CPU,-GPU"])
def test_devices_that_stand_for_others_may_be_named(device: str, small_onnx: Path) -> None:
    runtime: Any = open_runtime(small_onnx, "openvino", RuntimeOptions(device=device))
    assert device.upper() in runtime.name
    assert runtime.arithmetic == "fp32"  # left alone, they compute in BF16 where the CPU has it
    runtime.close()
    with pytest.raises(OptionError, match=f"`threads` is for the CPU; leave it out for {device.upper()}"):
        open_runtime(small_onnx, "openvino", RuntimeOptions(device=device, threads=1))


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("cuda", OptionError, "`device` is 'cuda', but OpenVINO runs on CPU, GPU, NPU, AUTO, MULTI, HETERO"),
        ("AUTO:TPU,CPU", OptionError, "`device` is 'AUTO:TPU,CPU', but OpenVINO runs on"),
        ("gpu.7", DeviceError, "OpenVINO finds no GPU here, only CPU"),
        ("auto:npu,cpu", DeviceError, "OpenVINO finds no NPU here"),
        ("cpu.5", ArtifactError, "can't be loaded by OpenVINO on CPU.5"),
    ],
)
def test_devices_that_are_not_there_are_named(
    device: str, error: type[Exception], message: str, small_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino.Core, "available_devices", property(lambda self: ["CPU"]))
    with pytest.raises(error, match=message):
        open_runtime(small_onnx, "openvino", RuntimeOptions(device=device))


def test_a_failure_of_openvino_is_one_clear_line(small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    runtime = open_runtime(small_onnx, "openvino")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Exception from src/x.cpp:1:\nout of memory\n\n")

    monkeypatch.setattr(openvino.InferRequest, "infer", fail)
    with pytest.raises(ArtifactError, match=r"^small.onnx failed while running: out of memory$"):
        runtime.run({"images": np.zeros((1, 3, 128, 160), np.float32)})
    runtime.close()
