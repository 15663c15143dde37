"""BF16 in the export: which nodes stay in FP32, what is compared, and what a file says about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from rtdetr_deploy import Predictor
from rtdetr_deploy.artifacts.bf16 import MIN_BF16_DETECTIONS, MIN_BF16_MATCH_RATE, Bf16Check
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, ArtifactInfo, read_metadata
from rtdetr_deploy.errors import ArtifactError, DeviceError, ExportError, MissingPackageError, OptionError
from rtdetr_deploy.model.fp32_scope import Fp32Scope
from rtdetr_deploy.runtimes.processor import instruction_sets
from rtdetr_export import ExportOptions, export
from rtdetr_export.module_map import ModuleMap
from rtdetr_export.precision.bf16 import find_fp32_nodes, shorten
from rtdetr_export.verify import arithmetics
from rtdetr_export.verify.agreement import Agreement
from rtdetr_export.verify.arithmetics import MAX_IMAGES, ArithmeticsReport, compare_arithmetics
from rtdetr_export.verify.synthetic_images import synthetic_images
from rtdetr_export.verify.tolerances import TOLERANCES

INFO = ArtifactInfo(
    class_names=("cell",),
    height=64,
    width=64,
    batch=1,
    variant="r18",
    layers=3,
    queries=10,
    max_detections=10,
    precision="fp32",
    sampler="gather",
    outputs="detections",
    raw_input=False,
    opset=17,
    source="r18.pth",
    source_digest="0" * 64,
    verified=True,
    version="0.2.0",
)


def agreement(matched: int) -> Agreement:
    none = np.zeros(0, np.float32)
    return Agreement(TOLERANCES, 1000, (900, 950, matched), 0, none, none)


def test_names_are_as_short_as_what_is_not_kept_allows() -> None:
    kept = ("/model/box/Add", "/model/box/layers.2/MatMul", "/model/box/layers.2/Add", "/post/TopK")
    assert shorten(kept, ("/model/box/Mul", "/model/Conv")) == ("/model/box/Add", "/model/box/layers.2/", "/post/")


def test_a_scope_of_bf16_that_matches_nothing_is_refused() -> None:
    node = ir.node("Relu", [ir.Value(name="x")], name="/model/act/Relu")
    graph = ir.Model(ir.Graph([], [], nodes=[node]), ir_version=8)
    deployed = SimpleNamespace(bf16_scopes=(Fp32Scope("heads", "model.heads", "a reason"),))
    with pytest.raises(ExportError, match=r"no node is in the scope 'heads' \(model\.heads\), which BF16"):
        find_fp32_nodes(graph, deployed, ModuleMap({"": "", "/model": "model", "/model/act": "model.act"}))  # type: ignore[arg-type]


def test_metadata_keep_what_stays_in_fp32_and_what_was_found() -> None:
    info = replace(INFO, fp32_nodes=("/post/",), bf16=Bf16Check(0.9991, 32, 640))
    assert read_metadata({METADATA_KEY: info.to_json()}, "m.onnx") == info
    assert info.arithmetics == ("fp32", "bf16")


@pytest.mark.parametrize(
    "bf16",
    [
        None,
        Bf16Check(MIN_BF16_MATCH_RATE - 0.001, 32, 640),
        Bf16Check(1.0, 4, MIN_BF16_DETECTIONS - 1),
        Bf16Check(1.0, 32),
    ],
)
def test_bf16_is_not_allowed_unless_it_was_found_to_keep_detections(bf16: Bf16Check | None) -> None:
    assert replace(INFO, bf16=bf16).arithmetics == ("fp32",)


def test_files_of_before_have_nothing_to_say_about_bf16() -> None:
    stored = json.loads(INFO.to_json())
    del stored["bf16"], stored["fp32_nodes"]
    found = read_metadata({METADATA_KEY: json.dumps(stored)}, "m.onnx")
    assert found is not None
    assert (found.bf16, found.fp32_nodes) == (None, ())


@pytest.mark.parametrize("values", [(1.5, 4, 9), (0.5, 0, 9), (0.5, 4, -1)])
def test_a_comparison_that_is_none_is_refused(values: tuple[float, int, int]) -> None:
    with pytest.raises(ArtifactError, match="is not a comparison"):
        Bf16Check(*values)


def test_a_comparison_of_another_kind_is_refused() -> None:
    with pytest.raises(ArtifactError, match="`images` is 'four', expected int"):
        Bf16Check(1.0, "four")  # type: ignore[arg-type]


def test_the_report_says_whether_bf16_is_allowed() -> None:
    assert "allowed; of 1000 detections on 32 images" in str(ArithmeticsReport(32, agreement(999)))
    assert "not allowed" in str(ArithmeticsReport(32, agreement(990)))
    assert ArithmeticsReport(32, agreement(999)).check == Bf16Check(0.999, 32, 1000)


def test_a_share_below_the_limit_does_not_reach_it_by_rounding() -> None:
    found = Agreement(TOLERANCES, 100_000, (0, 0, 99_896), 0, np.zeros(0, np.float32), np.zeros(0, np.float32))
    check = ArithmeticsReport(32, found).check
    assert check is not None
    assert (check.match_rate, check.allowed) == (0.9989, False)


def test_few_detections_allow_nothing_and_the_report_says_so() -> None:
    few = Agreement(TOLERANCES, 80, (80, 80, 80), 0, np.zeros(0, np.float32), np.zeros(0, np.float32))
    report = ArithmeticsReport(4, few)
    assert report.check is not None
    assert not report.check.allowed
    assert "not allowed (fewer than 500 detections were compared: more images of `calibration`" in str(report)


def test_the_report_says_why_nothing_is_known() -> None:
    report = ArithmeticsReport(0, None, "this processor has no BF16")
    assert report.check is None
    assert "not compared, this processor has no BF16" in str(report)


class Opened:
    """A Predictor that detects nothing and tells what it was asked for; `log` has (precision, images) of each call."""

    log: ClassVar[list[tuple[str, list[Any]]]] = []

    def __init__(self, path: Path, *, threshold: float, runtime: str, precision: str) -> None:
        assert (threshold, runtime) == (0.0, "openvino")
        self.precision = precision

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def detect_batch(self, images: list[Any]) -> list[Any]:
        self.log.append((self.precision, images))
        return images


def test_both_arithmetics_detect_on_the_same_evenly_chosen_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opened, "log", [])
    monkeypatch.setattr(arithmetics, "Predictor", Opened)
    monkeypatch.setattr(arithmetics, "find_spec", lambda name: name)
    monkeypatch.setattr(arithmetics, "compare", lambda reference, found, at_least: agreement(999))
    images: Any = [f"{number}.jpg" for number in range(2 * MAX_IMAGES)]
    report = compare_arithmetics(Path("m.onnx"), INFO, images)
    assert Opened.log == [("bf16", images[::2]), ("fp32", images[::2])]
    assert report is not None
    assert report.check == Bf16Check(0.999, MAX_IMAGES, 1000)


@pytest.mark.parametrize("error", [DeviceError, MissingPackageError])
def test_why_bf16_can_not_be_had_is_the_reason(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("the CPU here doesn't have it")

    monkeypatch.setattr(arithmetics, "Predictor", fail)
    monkeypatch.setattr(arithmetics, "find_spec", lambda name: name)
    report = compare_arithmetics(Path("m.onnx"), INFO, ["1.jpg"])
    assert report == ArithmeticsReport(0, None, "the CPU here doesn't have it")


def test_what_is_not_compared_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare_arithmetics(Path("m.onnx"), replace(INFO, precision="fp16"), ["1.jpg"]) is None
    without = compare_arithmetics(Path("m.onnx"), INFO, [])
    assert "not compared, no images were given (`calibration`)" in str(without)
    monkeypatch.setattr(arithmetics, "find_spec", lambda name: None)
    assert "openvino is not installed" in str(compare_arithmetics(Path("m.onnx"), INFO, ["1.jpg"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "tensorrt"}, '`calibration` is for lower precisions, engines, and `target="cpu"`'),
        ({"verify": False}, "`calibration` has the images on which BF16 is compared with FP32, which `verify=False`"),
    ],
)
def test_images_that_would_not_be_used_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExportOptions(Path("r50.pth"), calibration=Path("photos"), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of four images."""
    from PIL import Image

    for number, pixels in enumerate(synthetic_images(128, 160)):
        Image.fromarray(np.asarray(pixels)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "matched", "runs"),
    [
        ({"name": "m.onnx"}, 1000, "bf16"),
        ({"name": "m.xml"}, 990, "fp32"),
        ({"name": "int8.xml", "precision": "int8"}, 1000, "bf16"),
    ],
)
def test_what_was_found_is_stored_and_decides_what_auto_runs(
    changes: dict[str, Any],
    matched: int,
    runs: str,
    small_options: Any,
    squares: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if "BF16" not in (instruction_sets() or ()):
        pytest.skip("this processor has no BF16")
    monkeypatch.setattr(arithmetics, "compare", lambda reference, found, at_least: agreement(matched))
    monkeypatch.setattr("rtdetr_export.pipeline.verify_reduced_precision", _all_kept)
    result = export(small_options(**changes, calibration=squares[1], output=tmp_path / changes["name"]))
    assert result.arithmetics is not None
    assert result.info.bf16 == Bf16Check(matched / 1000, 5, 1000)
    with Predictor(result.path, runtime="openvino", precision="auto") as predictor:
        assert predictor.info == result.info
        assert predictor.arithmetic == runs


def _all_kept(*_: object) -> Any:
    from rtdetr_export.verify.reduced_precision import ReducedPrecisionReport

    return ReducedPrecisionReport("openvino", "int8", 5, {"openvino": agreement(1000)})


def test_a_few_images_are_compared_and_allow_nothing(small_options: Any, folder: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    result = export(small_options("few.onnx", calibration=folder, output=folder / "few.onnx", batch=None))
    assert result.info.arithmetics == ("fp32",)
    if "BF16" in (instruction_sets() or ()):
        assert result.info.bf16 is not None
        assert result.info.bf16.images == 4
    with Predictor(result.path, runtime="openvino", precision="auto") as predictor:
        assert predictor.arithmetic == "fp32"
