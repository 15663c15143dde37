"""The studies of NMS, decoder layers and encoders, from their functions to the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("torch")

import torch

from rtdetr_bench.cli import main
from rtdetr_bench.options import ImageOptions, NmsStudyOptions
from rtdetr_bench.studies.encoders import build_encoder
from rtdetr_bench.studies.nms import CURVE, IOUS, THRESHOLDS, study_nms
from rtdetr_bench.tools.random_models import main as make_random
from rtdetr_deploy import ArtifactInfo, OptionError, Predictor
from rtdetr_deploy.evaluate.published import ENCODERS
from rtdetr_deploy.model import RTDETR, VARIANTS
from rtdetr_deploy.model.hybrid_encoder import HybridEncoder
from rtdetr_deploy.model.variants import Variant
from yolo_files import SIZE, channels, crowd, write_yolo


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A YOLO, and a COCO json of two images whose objects are what it finds best, with the folder."""
    boxes, scores = crowd()
    names = {"names": str(dict(enumerate(["red", "white", "platelet"])))}
    yolo = write_yolo(tmp_path / "yolo.onnx", channels(boxes, scores), metadata=names)
    best = [(int(row), int(scores[row].argmax())) for row in np.argsort(-scores.max(axis=1))[:4]]
    folder = tmp_path / "images"
    folder.mkdir()
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": index + 1, "name": name} for index, name in enumerate(["red", "white", "platelet"])]
    for number in range(2):
        Image.new("RGB", (SIZE, SIZE)).save(folder / f"{number}.png")
        image = {"id": number, "file_name": f"{number}.png", "width": SIZE, "height": SIZE}
        content["images"].append(image)
        for row, label in best:
            x, y, w, h = boxes[row].tolist()
            content["annotations"].append({
                "id": len(content["annotations"]) + 1, "image_id": number, "category_id": label + 1,
                "bbox": [x - w / 2, y - h / 2, w, h], "area": w * h, "iscrowd": 0,
            })  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return yolo, tmp_path / "truth.json", folder


def test_nms_study_counts_times_and_scores_each_pair(scene: tuple[Path, Path, Path], small_onnx: Path) -> None:
    yolo, truth, folder = scene
    study = study_nms(NmsStudyOptions(yolo, small_onnx, ImageOptions((folder,), truth)))
    assert study.images == 2
    assert list(study.curve) == list(CURVE)
    counts = list(study.curve.values())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 60  # every box of the crowd has a class above 0.001
    scores = crowd()[1]
    assert study.curve[0.5] == (scores.max(axis=1) > 0.5).sum()
    assert [(row.threshold, row.iou) for row in study.rows] == [(c, i) for c in THRESHOLDS for i in IOUS]
    for row in study.rows:
        assert set(row.milliseconds) == {"cv2", "numpy"}
        assert 0 < row.milliseconds["cv2"] <= row.slowest
        assert row.ap is not None
        assert 0.0 < row.ap <= 1.0
    kept = {(row.threshold, row.iou): row.kept for row in study.rows}
    assert kept[0.001, 0.8] > kept[0.001, 0.5]
    assert kept[0.001, 0.5] > kept[0.25, 0.5]
    assert set(study.flat) == set(THRESHOLDS)
    content = json.loads(json.dumps(study.to_json()))
    assert content["rtdetr"] == small_onnx.name


def test_nms_study_wants_a_yolo_and_images(
    scene: tuple[Path, Path, Path], small_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yolo, _, folder = scene
    with pytest.raises(OptionError, match="has no boxes left to suppress"):
        study_nms(NmsStudyOptions(small_onnx, images=ImageOptions((folder / "0.png",))))
    with pytest.raises(OptionError, match="needs `images`"):
        study_nms(NmsStudyOptions(yolo))
    with pytest.raises(OptionError, match="`against` is yolo.onnx, which is not an RT-DETR"):
        study_nms(NmsStudyOptions(yolo, yolo, ImageOptions((folder / "0.png",))))
    assert main(["nms", "--engine", str(yolo), "--images", str(folder), "--against", str(small_onnx)]) == 0
    text = capsys.readouterr().out
    assert "boxes left per image" in text
    assert "no NMS; all of decode" in text


def test_decoder_study_times_every_number_of_layers(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, page = tmp_path / "a.json", tmp_path / "a.html"
    command = ["decoder", "--weights", str(small_checkpoint), "--size", "128x160", "--runs", "3", "--warmup", "1"]
    assert main([*command, "--json", str(target), "--report", str(page)]) == 0
    text = capsys.readouterr().out
    assert "published (R50, T4): AP, ms, ratio (to its 3 layers)" in text
    assert "52.4, 7.9, 1.000" in text
    assert "49.1, 7.0, 0.886" in text
    rows = json.loads(target.read_text())["decoder"]["rows"]
    assert [row["name"] for row in rows] == ["3 layers", "2 layers", "1 layer"]
    assert rows[0]["ratio"] == [1.0, 1.0, 1.0]
    assert all(len(row["samples"]["infer"]) == 3 for row in rows)
    assert "Decoder layers" in page.read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("decoder --weights {weights} --resizer cuda", "--resizer cuda is for TensorRT engines; this study exports"),
        ("encoder --variant r18 --resizer cuda", "--resizer cuda is for TensorRT engines; this study exports"),
        ("decoder --weights {weights} --threads 9999", "threads is 9999"),
        ("encoder --variant r18 --threads 0", "threads is 0"),
        ("ablation --weights {weights} --annotations {weights} --images . --threads 0", "threads is 0"),
    ],
)
def test_studies_refuse_what_their_models_can_not_do_before_they_export(
    line: str, message: str, r18_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rtdetr_export.export_onnx", lambda *_: pytest.fail("it was exported"))
    monkeypatch.setattr("rtdetr_bench.studies.decoder._export_encoder", lambda *_: pytest.fail("it was exported"))
    assert main(line.format(weights=r18_checkpoint).split()) == 2
    assert message in capsys.readouterr().err


def _count(module: Any) -> float:
    return float(sum(parameter.numel() for parameter in module.parameters()) / 1e6)


def _maps(variant: Variant, height: int, width: int) -> list[torch.Tensor]:
    """Return random backbone maps."""
    strides = zip(variant.backbone.channels, (8, 16, 32), strict=True)
    return [torch.rand(1, channels, height // stride, width // stride) for channels, stride in strides]


def test_encoders_give_three_maps_and_have_about_the_published_sizes() -> None:
    """Differences of parameters between the paper's variants, which are the encoders' alone, within 1.5 million."""
    variant: Variant = VARIANTS["r50"]
    maps = [
        torch.rand(1, channels, 64 // stride, 96 // stride) for channels, stride in ((512, 8), (1024, 16), (2048, 32))
    ]
    counts = {}
    for name in ENCODERS:
        encoder = build_encoder(name, variant).eval()
        with torch.no_grad():
            levels = encoder(maps)
        assert [tuple(level.shape) for level in levels] == [(1, 256, 8, 12), (1, 256, 4, 6), (1, 256, 2, 3)]
        counts[name] = _count(encoder)
    for name, (_, published, _) in ENCODERS.items():
        assert counts[name] - counts["A"] == pytest.approx(published - ENCODERS["A"][1], abs=1.5), name
    assert isinstance(build_encoder("E", variant), HybridEncoder)
    assert _count(build_encoder("C_MSE", variant)) == _count(build_encoder("B", variant))  # 32 million, both published
    total = _count(RTDETR(variant)) - counts["E"] + counts["A"]
    assert total == pytest.approx(ENCODERS["A"][1], abs=1.5)


def test_single_scale_attention_stays_inside_a_level_and_multi_scale_does_not() -> None:
    variant = VARIANTS["r18"]
    maps = [
        torch.rand(1, channels, 64 // stride, 64 // stride) for channels, stride in ((128, 8), (256, 16), (512, 32))
    ]
    changed = [maps[0] + 1.0, *maps[1:]]
    for name, spreads in (
        ("A", False),
        ("B", False),
        ("C", True),
        ("C_MSE", True),
        ("D", True),
        ("D_S5", True),
        ("E", True),
    ):
        torch.manual_seed(1)
        encoder = build_encoder(name, variant).eval()
        with torch.no_grad():
            one, other = encoder(maps), encoder(changed)
        assert bool((one[2] != other[2]).any()) is spreads, name


@pytest.mark.slow
def test_encoder_study_writes_the_papers_figures_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.json"
    command = ["encoder", "--variant", "r18", "--size", "64", "--encoders", "A,E", "--runs", "3", "--warmup", "1"]
    assert main([*command, "--json", str(target)]) == 0
    assert "43.0, 31, 7.2" in capsys.readouterr().out
    rows = json.loads(target.read_text())["encoder"]["rows"]
    assert [row["name"] for row in rows] == ["A", "E"]
    assert rows[0]["parameters_million"] < rows[1]["parameters_million"]
    assert json.loads(target.read_text())["encoder"]["rounds"] == 3
    for names in ("", ",", "A,A"):
        assert main(["encoder", "--variant", "r18", "--encoders", names]) == 2
        assert "name each encoder once, and one at least; choose from A" in capsys.readouterr().err
    assert main(["encoder", "--variant", "r18", "--encoders", "A,F"]) == 2
    assert "unknown encoder F; choose from A, B, C, D, D_S5, E" in capsys.readouterr().err


@pytest.mark.slow
def test_random_models_are_what_the_exporter_makes(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    assert make_random(["--output", str(tmp_path), "--variants", "r18"]) == 0
    with Predictor(tmp_path / "rtdetr-r18.onnx", 0.0) as predictor:
        assert isinstance(predictor.info, ArtifactInfo)
        assert (predictor.info.variant, predictor.input_size) == ("r18", (640, 640))
        assert len(predictor.detect(picture)) == 300
