"""COCO evaluation: known answers, category ids with gaps, checkpoints and exports alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import small_variant

pytest.importorskip("torch")
pytest.importorskip("faster_coco_eval")

from rtdetr_bench.accuracy import evaluate
from rtdetr_bench.cli import main
from rtdetr_bench.options import AccuracyOptions, EvaluationSet, RunOptions
from rtdetr_deploy import OptionError
from rtdetr_deploy.evaluate.coco import Annotations, read_annotations, score_results

NAMES = ("red", "white", "platelet")


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Three images, ten objects, category ids 2, 5, 9."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in (11, 12, 40):
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 100, "height": 80})
    for index in range(10):
        box = [5.0 + 8 * index, 4.0 + 3 * index, 12.0, 20.0]
        annotations.append({
            "id": index + 1, "image_id": (11, 12, 40)[index % 3], "category_id": (2, 5, 9)[index % 2],
            "bbox": box, "area": 240.0, "iscrowd": 0,
        })  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in zip((2, 5, 9), NAMES, strict=True)]
    path = tmp_path / "val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path, folder


def _results(truth: Annotations, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9, **changes}
        for a in truth.content["annotations"]
    ]


def test_perfect_detections_score_1(data: tuple[Path, Path]) -> None:
    truth = read_annotations(*data, NAMES)
    assert truth.category_ids == (2, 5, 9)
    accuracy = score_results(_results(truth), truth, NAMES)
    assert accuracy.metrics["AP"] == accuracy.metrics["AP50"] == accuracy.metrics["AR100"] == pytest.approx(1.0)
    assert accuracy.per_class == {"red": pytest.approx(1.0), "white": pytest.approx(1.0), "platelet": -1.0}


def test_boxes_with_iou_0_6_count_at_the_three_lowest_thresholds(data: tuple[Path, Path]) -> None:
    truth = read_annotations(*data, NAMES)
    results = _results(truth)
    for entry in results:
        x, y, width, height = entry["bbox"]
        entry["bbox"] = [x, y, width, height * 0.62]
    metrics = score_results(results, truth, NAMES).metrics
    assert metrics["AP50"] == pytest.approx(1.0)
    assert metrics["AP75"] == pytest.approx(0.0)
    assert metrics["AP"] == pytest.approx(0.3)


def test_half_of_the_objects_found_give_half_of_the_recall(data: tuple[Path, Path]) -> None:
    truth = read_annotations(*data, NAMES)
    only_red = [entry for entry in _results(truth) if entry["category_id"] == 2]
    accuracy = score_results(only_red, truth, NAMES)
    assert accuracy.per_class["red"] == pytest.approx(1.0)
    assert accuracy.per_class["white"] == pytest.approx(0.0)
    assert accuracy.metrics["AP"] == pytest.approx(0.5)


def test_a_false_alarm_above_every_hit_costs_precision(data: tuple[Path, Path]) -> None:
    truth = read_annotations(*data, NAMES)
    alarms = [{**entry, "bbox": [70.0, 60.0, 9.0, 9.0], "score": 0.95} for entry in _results(truth)]
    assert score_results(_results(truth) + alarms, truth, NAMES).metrics["AP"] == pytest.approx(0.5, abs=0.1)


def test_no_detections_score_0(data: tuple[Path, Path]) -> None:
    truth = read_annotations(*data, NAMES)
    assert score_results([], truth, NAMES).metrics["AP"] == 0.0


def test_checkpoint_and_export_agree(
    small_checkpoint: Path,
    small_export: Any,
    data: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exported = small_export("all.onnx", layers=None)
    target = tmp_path / "accuracy.json"
    images = ["--images", str(data[1]), "--annotations", str(data[0])]
    assert main(["accuracy", "--engine", str(exported), *images, "--json", str(target)]) == 0
    assert "AP per class: red" in capsys.readouterr().out
    found = json.loads(target.read_text())
    torch_accuracy = evaluate(AccuracyOptions(small_checkpoint, EvaluationSet(*data), RunOptions(size=(128, 160))))
    assert found["images"] == torch_accuracy.images == 3
    assert found["detections"] == torch_accuracy.detections == 900
    assert (found["options"]["images"], found["options"]["annotations"]) == ("images", "val.json")
    assert found["metrics"] == pytest.approx(torch_accuracy.metrics, abs=1e-3)


@pytest.mark.slow
def test_the_study_changes_one_thing_at_a_time(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from rtdetr_deploy.model import RTDETR
    from rtdetr_deploy.model.random_weights import fill_randomly

    model = RTDETR(replace(small_variant(), classes=3, max_layers=2), 2)
    fill_randomly(model, seed=7)
    weights = tmp_path / "two.pth"
    torch.save({"model": model.state_dict(), "class_names": list(NAMES), "input_size": [128, 160]}, weights)
    command = ["ablation", "--weights", str(weights), "--annotations", str(data[0]), "--images", str(data[1])]
    timing = ["--runs", "3", "--warmup", "1"]
    assert main([*command, *timing, "--json", str(tmp_path / "study.json")]) == 0
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    keys = ("runtime", "layers", "queries", "resizer", "cascade")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("onnxruntime", 2, 300, "opencv", None),
        ("torch", 2, 300, "opencv", None),
        ("onnxruntime", 2, 300, "pillow", None),
        ("onnxruntime", 1, 300, "opencv", None),
        ("onnxruntime", 2, 200, "opencv", None),
        ("onnxruntime", 2, 100, "opencv", None),
        ("onnxruntime", 2, 300, "opencv", "1:200"),
        ("onnxruntime", 2, 300, "opencv", "1:100"),
    ]
    timed = [index for index, row in enumerate(rows) if "ratio" in row]
    assert timed == [0, 3, 4, 5, 6, 7]
    assert rows[0]["ratio"] == [1.0, 1.0, 1.0]
    assert all(len(rows[index]["samples"]["infer"]) == 3 for index in timed)
    assert rows[0]["metrics"] == pytest.approx(rows[1]["metrics"], abs=1e-3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert lines[1].endswith("1.000 [1.000, 1.000]")
    assert lines[2].endswith("+0.0000")
    assert " 1:100 " in lines[8]


def test_an_ablation_refuses_a_cascade_that_the_model_can_not_run_before_it_exports(
    small_checkpoint: Path, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rtdetr_export.export_onnx", lambda *_: pytest.fail("it was exported"))
    command = ["ablation", "--weights", str(small_checkpoint), "--annotations", str(data[0]), "--images", str(data[1])]
    assert main([*command, "--cascade", "1:100", "--cascade", "3:100"]) == 2
    assert "--cascade leaves queries out after decoder layer 3, which no other follows" in capsys.readouterr().err


def test_an_ablation_needs_a_checkpoint(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")
    assert main(["ablation", "--weights", str(model), "--annotations", str(data[0]), "--images", str(data[1])]) == 2
    assert "--weights is model.onnx, a model file; expected a checkpoint" in capsys.readouterr().err


def _without(key: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            del annotation[key]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("categories"), "is not a COCO json with images, annotations and categories"),
        (lambda content: content.update(annotations=[]), "holds no annotations"),
        (lambda content: content.update(images=[]), "holds no images"),
        (
            lambda content: content["images"].append({"id": 1, "file_name": "gone.png"}),
            r"images of .* \(1 of 4; the first is gone.png\)",
        ),
        (
            lambda content: content["categories"].pop(),
            r"the model's classes \(red, white, platelet\) are not the categories of",
        ),
        (_without("bbox"), "the bbox of entry 0 of annotations is not four finite numbers"),
        (
            lambda content: content["annotations"][0].update(image_id=99),
            r"an unknown image_id \(1 of 10; the first is 99\)",
        ),
        (
            lambda content: content["annotations"][1].update(category_id=7),
            "an unknown category_id .* the first is 7",
        ),
        (_without("category_id"), "is not a COCO json"),
    ],
)
def test_annotations_that_do_not_fit_get_one_clear_line(change: Any, message: str, data: tuple[Path, Path]) -> None:
    content = json.loads(data[0].read_text())
    change(content)
    data[0].write_text(json.dumps(content))
    with pytest.raises(OptionError, match=message) as caught:
        read_annotations(*data, NAMES)
    assert "\n" not in str(caught.value)


def test_other_names_are_matched_by_order(data: tuple[Path, Path]) -> None:
    assert read_annotations(*data, ("a", "b", "c")).category_ids == (2, 5, 9)
    assert read_annotations(*data, ("white", "red")).category_ids == (5, 2)
    with pytest.raises(OptionError, match="are not the categories"):
        read_annotations(*data, ("white", "red", "Platelet"))
    with pytest.raises(OptionError, match="can't read annotations"):
        read_annotations(data[0].with_name("none.json"), data[1], NAMES)
