"""rtdetr-export --output model.xml: OpenVINO's files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

from rtdetr_deploy import ArtifactInfo, OptionError, OutputError, Predictor
from rtdetr_export import ExportOptions, export
from rtdetr_export.cli import main
from rtdetr_export.openvino_file import written_together


def test_what_is_written_is_verified_by_openvino_and_knows_its_classes(small_options: Any, picture: Any) -> None:
    result = export(small_options("fixed.xml", class_names=("<red>", 'white & "blue"', "plätelet")))
    assert str(result.report).startswith("parity with torch, run by OpenVINO")
    assert [path.name for path in result.files] == ["fixed.xml", "fixed.bin"]
    assert all(path.exists() for path in result.files)
    with Predictor(result.path, 0.0) as predictor:
        info = predictor.info
        assert isinstance(info, ArtifactInfo)
        assert info == result.info
        assert (info.raw_input, info.batch, predictor.input_size) == (True, 1, (128, 160))
        assert predictor.class_names == ("<red>", 'white & "blue"', "plätelet")
        assert len(predictor.detect(picture)) > 0


def test_frames_cross_as_bytes(small_xml: Path, picture: Any) -> None:
    with Predictor(small_xml) as predictor:
        batch = predictor.prepare(predictor.load([picture]))
        assert isinstance(batch, np.ndarray)
        assert (batch.dtype, batch.shape) == (np.uint8, (1, 128, 160, 3))


@pytest.mark.parametrize(
    "changes", [{"raw_output": True, "batch": None, "size": (96, 64)}, {"raw_input": False, "batch": 2}]
)
def test_other_files_agree_with_torch_too(changes: dict[str, Any], small_options: Any) -> None:
    result = export(small_options("other.xml", **changes))
    assert result.report is not None
    assert result.report.passed
    assert result.info.raw_input == changes.get("raw_input", True)


def test_int8_runs_in_int8(small_options: Any, squares: tuple[Path, Path]) -> None:
    result = export(small_options("small-int8.xml", precision="int8", calibration=squares[0].parent, verify=False))
    with Predictor(result.path) as predictor:
        nodes = predictor._runtime._compiled.get_runtime_model().get_ops()  # type: ignore[attr-defined]
    kinds = Counter(
        str(node.get_rt_info()["runtimePrecision"].value)
        for node in nodes
        if node.get_rt_info()["layerType"].value == "Convolution"
    )
    assert kinds["i8"] + kinds["u8"] > 0


def test_the_same_export_gives_the_same_bytes(small_xml: Path, small_options: Any) -> None:
    again = export(small_options("again.xml", batch=None, verify=True)).files
    for one, other in zip((small_xml, small_xml.with_suffix(".bin")), again, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "FP16 is not for .xml files: OpenVINO computes FP32 ones in BF16 or FP16"),
        ({"target": "tensorrt"}, '`target="tensorrt"` does not go with .xml files, which OpenVINO runs'),
        ({"format": "deepstream"}, '`output` is m.xml, but `format="deepstream"` writes a folder; leave .xml out'),
    ],
)
def test_what_openvino_would_not_run_so_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExportOptions("r50.pth", "m.xml", **changes)  # type: ignore[arg-type]


def test_a_checkpoint_called_like_the_weights_is_not_overwritten(small_checkpoint: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.bin"
    weights.write_bytes(small_checkpoint.read_bytes())
    with pytest.raises(OutputError, match=r"the weights beside `output` would overwrite the input .*model.bin"):
        export(ExportOptions(weights, tmp_path / "model.xml"))
    assert weights.read_bytes() == small_checkpoint.read_bytes()


def test_nothing_is_left_and_nothing_changed_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("old")
    (tmp_path / "m.bin").write_text("weights")

    def write(path: Path) -> None:
        with written_together(path) as beside:
            beside.write_text("new")
            beside.with_suffix(".bin").write_text("new weights")
            raise KeyError(path)

    with pytest.raises(KeyError):
        write(tmp_path / "m.xml")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.xml": "old", "m.bin": "weights"}


def test_folders_that_can_not_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"can't write .*file/m.xml: "), written_together(tmp_path / "file" / "m.xml"):
        pass


def test_both_files_are_told(small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.xml"
    typed = ["--weights", str(small_checkpoint), "--size", "64", "--layers", "1", "--no-verify", "--output", str(path)]
    assert main(typed) == 0
    assert f"wrote {path} and {path.with_suffix('.bin')} (" in capsys.readouterr().out
