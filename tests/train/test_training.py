"""Data, augmentation and the training run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from rtdetr_deploy.errors import CheckpointError, OptionError, OutputError  # noqa: E402
from rtdetr_deploy.evaluate.coco import read_annotations  # noqa: E402
from rtdetr_deploy.model import VARIANTS, load_checkpoint  # noqa: E402
from rtdetr_train.cli import main  # noqa: E402
from rtdetr_train.data.augment import Augmentation, crop_by_iou, expand, flip_horizontally, transpose  # noqa: E402
from rtdetr_train.data.coco import Sample, collate, read_coco  # noqa: E402
from rtdetr_train.data.loader import EpochBatches, load_epoch, make_augmentation  # noqa: E402
from rtdetr_train.ema import Average  # noqa: E402
from rtdetr_train.optimize import make_optimizer, rate_share, set_rate  # noqa: E402
from rtdetr_train.options import TrainOptions, check_paths  # noqa: E402
from rtdetr_train.trainer import Epoch, Watcher, build_model, train  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five pictures with coloured squares; the last one is empty; category ids 3 and 7."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, 6):
        pixels = np.full((90, 120, 3), 200, np.uint8)
        for index in range(number % 5):
            x, y = rng.integers(0, 90), rng.integers(0, 60)
            pixels[y : y + 25, x : x + 25] = (220, 40, 40) if index % 2 else (40, 40, 220)
            category = 7 if index % 2 else 3
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": category,
                "bbox": [int(x), int(y), 25, 25], "area": 625, "iscrowd": 0,
            })  # fmt: skip
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 120, "height": 90})
    path = folder / "squares.json"
    categories = [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path, folder


@pytest.fixture
def options(data: tuple[Path, Path], tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        data=data[0], images=data[1], val=data[0], output=tmp_path / "run", layers=1, queries=20, size=96, scales=1,
        epochs=2, batch=2, warmup=2, workers=0, evaluate_every=2,
    )  # fmt: skip


def test_labels_count_categories_by_id(data: tuple[Path, Path]) -> None:
    squares = read_coco(*data)
    assert squares.class_names == ("blue", "red")
    assert len(squares) == 5
    assert squares.load(0).labels.tolist() == [0]
    assert squares.load(4).boxes.shape == (0, 4)


def test_missing_images_and_other_files_get_one_clear_line(data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"are not in .* \(5 of 5; the first is 1.png\)"):
        read_coco(data[0], tmp_path)
    with pytest.raises(OptionError, match="can't read"):
        read_coco(tmp_path / "none.json", tmp_path)
    other = tmp_path / "other.json"
    other.write_text("[]")
    with pytest.raises(OptionError, match="is not a COCO json"):
        read_coco(other, tmp_path)
    other.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(OptionError, match="holds no images"):
        read_coco(other, tmp_path)
    content = json.loads(data[0].read_text())
    for key, what in (("annotations", "annotations"), ("categories", "categories")):
        other.write_text(json.dumps({**content, key: []}))
        with pytest.raises(OptionError, match=f"holds no {what}"):
            read_coco(other, data[1])


def test_boxes_too_small_to_learn_and_crowds_are_left_out_with_their_number(
    data: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(data[0].read_text())
    path = tmp_path / "small.json"
    content["annotations"][0]["bbox"][2] = 0.5
    content["annotations"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    squares = read_coco(path, data[1])
    assert sum(len(labels) for _, labels in squares.objects) == len(content["annotations"]) - 2
    assert caplog.messages == [
        f"{path}: boxes smaller than 1 pixel are left out (1 of {len(content['annotations']) - 1})"
    ]
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(OptionError, match="has no box to learn: all are crowd regions or smaller than 1 pixel"):
        read_coco(path, data[1])


def test_training_and_evaluation_refuse_the_same_jsons(data: tuple[Path, Path], tmp_path: Path) -> None:
    content = json.loads(data[0].read_text())
    content["annotations"][0]["category_id"] = 77
    path = tmp_path / "unknown.json"
    path.write_text(json.dumps(content))
    messages = []
    for read in (lambda: read_coco(path, data[1]), lambda: read_annotations(path, data[1], ("blue", "red"))):
        with pytest.raises(OptionError, match=r"unknown category_id \(1 of \d+; the first is 77\)") as caught:
            read()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def _squares(sample: Sample) -> list[tuple[int, ...]]:
    """Return the bounding box of the marked pixels."""
    y, x = np.nonzero((sample.image == 255).all(axis=-1))
    return [(x.min(), y.min(), x.max() + 1, y.max() + 1)]


@pytest.fixture
def marked() -> Sample:
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:30, 20:50] = 255
    return Sample(image, np.array([[20, 10, 50, 30]], np.float32), np.array([1]))


def test_boxes_follow_the_pixels_through_every_geometric_operation(marked: Sample) -> None:
    rng = np.random.default_rng(0)
    samples = [flip_horizontally(marked), transpose(marked), transpose(flip_horizontally(transpose(marked)))]
    samples += [expand(marked, rng, 3.0) for _ in range(10)] + [crop_by_iou(marked, rng) for _ in range(30)]
    assert len({sample.image.shape for sample in samples}) > 10
    for sample in samples:
        assert np.abs(sample.boxes - _squares(sample)).max() <= 1.0


def test_augmented_samples_are_usable_and_reproducible(marked: Sample) -> None:
    augment = Augmentation(any_orientation=True)
    for seed in range(60):
        sample = augment(marked, np.random.default_rng(seed))
        height, width = sample.image.shape[:2]
        assert sample.image.dtype == np.uint8
        assert ((sample.boxes[:, 2:] - sample.boxes[:, :2]) >= 1).all()
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= [width, height, width, height]).all()
        again = augment(marked, np.random.default_rng(seed))
        assert np.array_equal(sample.image, again.image)
        assert np.array_equal(sample.boxes, again.boxes)


def test_last_epochs_are_plain(options: TrainOptions, marked: Sample) -> None:
    options = replace(options, epochs=5, plain_epochs=2)
    before, after = make_augmentation(options, 2), make_augmentation(options, 3)
    shapes = {before(marked, np.random.default_rng(seed)).image.shape for seed in range(20)}
    assert len(shapes) > 5
    for seed in range(20):
        sample = after(marked, np.random.default_rng(seed))
        assert sample.image.shape == marked.image.shape
        assert set(np.unique(sample.image)) == {0, 255}


def test_empty_and_degenerate_boxes_go_through() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    boxes = np.array([[5, 5, 5, 20], [50, 50, 60, 60], [1, 1, 9, 9]], np.float32)
    sample = Sample(image, boxes, np.array([0, 1, 2])).keep_usable()
    assert sample.labels.tolist() == [2]
    nothing = Sample(image, boxes[:0], sample.labels[:0])
    for seed in range(20):
        assert len(Augmentation()(nothing, np.random.default_rng(seed)).boxes) == 0
    images, targets = collate([sample, nothing], 64, 96)
    assert images.shape == (2, 3, 64, 96)
    assert targets[0].boxes.tolist()[0] == pytest.approx([0.125, 0.125, 0.2, 0.2])
    assert targets[1].boxes.shape == (0, 4)


def test_batches_do_not_depend_on_workers_and_cover_every_image(data: tuple[Path, Path], options: TrainOptions) -> None:
    squares = read_coco(*data)
    alone = list(load_epoch(squares, options, epoch=3))
    together = list(load_epoch(squares, replace(options, workers=2), epoch=3))
    assert len(alone) == 3
    for (images, _), (others, _) in zip(alone, together, strict=True):
        assert torch.equal(images, others)
    batches = EpochBatches(squares, options, epoch=3)
    assert set(batches._order.tolist()) == set(range(5))
    sizes = {tuple(images.shape[2:]) for epoch in range(4) for images, _ in load_epoch(squares, options, epoch)}
    assert sizes <= {(64, 64), (96, 96), (128, 128)}
    assert len(sizes) > 1


def test_norms_and_biases_have_no_decay_and_the_backbone_a_lower_rate(options: TrainOptions) -> None:
    model = build_model(options, ("a", "b"))
    optimizer = make_optimizer(model, options)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    shares = {id(p): group["share"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if parameter.ndim <= 1 else 1e-4), name
        assert shares[id(parameter)] == (0.1 if name.startswith("backbone.") else 1.0), name
    assert [rate_share(step, 100, 10) for step in (0, 9, 10, 100)] == pytest.approx([0.1, 1.0, 1.0, 0.01])


class _Killed(Exception):
    pass


def test_a_killed_run_continues_to_the_same_weights(options: TrainOptions, tmp_path: Path) -> None:
    seen: list[Epoch] = []
    whole = train(options, Watcher(on_epoch=seen.append))
    assert [epoch.epoch for epoch in seen] == [0, 1]
    assert seen[0].accuracy is None
    assert seen[1].accuracy is not None

    def kill(epoch: Epoch) -> None:
        raise _Killed

    broken = replace(options, output=tmp_path / "broken")
    with pytest.raises(_Killed):
        train(broken, Watcher(on_epoch=kill))
    train(broken)
    expected = torch.load(options.output / "last.pth", weights_only=True)
    found = torch.load(broken.output / "last.pth", weights_only=True)
    for one, other in ((expected["model"], found["model"]), (expected["ema"]["module"], found["ema"]["module"])):
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
    assert whole.parent == options.output


def test_checkpoints_open_as_released_ones_and_can_be_tuned_for_other_classes(
    options: TrainOptions, data: tuple[Path, Path]
) -> None:
    path = train(replace(options, epochs=1, evaluate_every=1))
    loaded = load_checkpoint(path)
    assert loaded.class_names == ("blue", "red")
    assert (loaded.variant.name, loaded.variant.classes, loaded.model.layers) == ("r18", 2, 1)
    tuned = build_model(replace(options, weights=path, layers=None, freeze="backbone"), ("a", "b", "c"))
    assert tuned.variant.classes == 3
    assert not any(parameter.requires_grad for parameter in tuned.backbone.parameters())
    own, source = tuned.state_dict(), loaded.model.state_dict()
    assert torch.equal(own["encoder.lateral_convs.0.conv.weight"], source["encoder.lateral_convs.0.conv.weight"])
    assert own["decoder.enc_score_head.weight"].shape == (3, 256)


def _from_weights(path: Path) -> dict[str, Any]:
    return {"weights": path, "val": None, "evaluate_every": 1}


def test_a_frozen_backbone_stays_as_it_is(options: TrainOptions, r18_checkpoint: Path) -> None:
    frozen = replace(options, epochs=1, freeze="backbone", **_from_weights(r18_checkpoint))
    before = build_model(frozen, ("blue", "red")).state_dict()
    after = load_checkpoint(train(frozen)).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("backbone."))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("decoder."))


def test_frozen_norms_keep_statistics_and_gains_while_convolutions_train(
    options: TrainOptions, r18_checkpoint: Path
) -> None:
    frozen = replace(options, epochs=1, freeze="norms", **_from_weights(r18_checkpoint))
    before = build_model(frozen, ("blue", "red")).state_dict()
    after = load_checkpoint(train(frozen)).model.state_dict()
    for name in before:
        if name.startswith("backbone.") and ".norm." in name:
            assert torch.equal(before[name], after[name]), name
    convolutions = [name for name in before if name.startswith("backbone.") and name.endswith("conv.weight")]
    assert any(not torch.equal(before[name], after[name]) for name in convolutions)


def test_an_output_that_cannot_be_written_is_named_before_training(options: TrainOptions) -> None:
    options.output.write_text("a file")
    with pytest.raises(OutputError, match="can't write"):
        train(options, Watcher(on_step=lambda step: pytest.fail("trained")))


def test_another_runs_folder_is_refused(options: TrainOptions) -> None:
    options.output.mkdir()
    (options.output / "last.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="can't be continued; choose another --output folder"):
        train(options)
    torch.save({"class_names": ["x"]}, options.output / "last.pth")
    with pytest.raises(CheckpointError, match="trained on other classes"):
        train(options)


def test_a_run_that_diverges_stops_and_keeps_no_broken_weights(options: TrainOptions) -> None:
    with pytest.raises(OptionError, match="training diverged.* start anew with a lower --rate"):
        train(replace(options, rate=1e30, warmup=0, epochs=4, val=None, evaluate_every=1))
    if (options.output / "last.pth").exists():
        load_checkpoint(options.output / "last.pth")


def test_a_variant_that_the_weights_are_not_is_refused(options: TrainOptions, r18_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="holds r18, not r101"):
        train(replace(options, weights=r18_checkpoint, variant="r101"))
    assert build_model(replace(options, weights=r18_checkpoint, variant="r18"), ("a", "b")).variant.name == "r18"


@pytest.mark.parametrize("name", ["--weights", "--data", "--val"])
def test_a_missing_file_is_named_before_torch_is_imported(
    name: str, data: tuple[Path, Path], tmp_path: Path, r18_checkpoint: Path
) -> None:
    files = {"--data": data[0], "--val": data[0], "--weights": r18_checkpoint, name: tmp_path / "nope.pth"}
    command = [text for option, path in files.items() for text in (option, str(path))]
    code = "import sys; sys.modules['torch'] = None; from rtdetr_train.cli import main; sys.exit(main(sys.argv[1:]))"
    command += ["--images", str(data[1]), "--output", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *command], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"rtdetr-train: {tmp_path / 'nope.pth'} does not exist\n")


def test_a_run_does_not_overwrite_the_weights_that_it_starts_from(
    options: TrainOptions, data: tuple[Path, Path], r18_checkpoint: Path, tmp_path: Path
) -> None:
    best = tmp_path / "best.pth"
    best.write_bytes(r18_checkpoint.read_bytes())
    with pytest.raises(OutputError, match="best.pth in --output would overwrite"):
        check_paths(replace(options, weights=best, output=tmp_path))


def test_boxes_outside_of_every_image_are_not_trained_on_in_silence(
    data: tuple[Path, Path], tmp_path: Path, options: TrainOptions
) -> None:
    content = json.loads(data[0].read_text())
    for image in content["images"]:
        image.update(width=4000, height=4000)
    for annotation in content["annotations"]:
        annotation["bbox"][0] += 500
    path = tmp_path / "outside.json"
    path.write_text(json.dumps(content))
    with pytest.raises(OptionError, match="outside.json showed an object in a whole epoch"):
        train(replace(options, data=path, val=None, evaluate_every=1))
    assert not (options.output / "last.pth").exists()


def test_other_options_do_not_continue_a_run(options: TrainOptions) -> None:
    train(replace(options, epochs=1, val=None, evaluate_every=1))
    with pytest.raises(CheckpointError, match=r"trained with other options \(epochs, rate\)"):
        train(replace(options, epochs=3, rate=5e-5, val=None, evaluate_every=1))


def test_validation_data_is_looked_at_before_training(options: TrainOptions, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="none.json does not exist"):
        train(replace(options, val=tmp_path / "none.json"), Watcher(on_step=lambda step: pytest.fail("trained")))


def test_a_device_that_is_not_there_is_refused(options: TrainOptions) -> None:
    for device in ("gpu", "meta", "cuda:99"):
        with pytest.raises(OptionError, match=f"device '{device}' can't be used"):
            train(replace(options, device=device))


def test_the_average_follows_the_weights_slowly(options: TrainOptions) -> None:
    model = build_model(options, ("a",))
    average = Average(model, decay=0.9, ramp=1e-9)
    before = average.module.decoder.enc_score_head.bias.clone()
    with torch.no_grad():
        model.decoder.enc_score_head.bias.add_(1.0)
    average.update(model)
    assert torch.allclose(average.module.decoder.enc_score_head.bias, before + 0.1, atol=1e-6)


def test_rates_reach_the_optimizer(options: TrainOptions) -> None:
    optimizer = make_optimizer(build_model(options, ("a",)), options)
    set_rate(optimizer, 2e-4)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([2e-5, 2e-5, 2e-4, 2e-4])


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"size": 100}, "size is 100, expected a multiple of 32"),
    "huge size": ({"size": 99999999999999968}, "size is 99999999999999968, expected a whole number from 64 to 8192"),
    "epochs": ({"epochs": 0}, "epochs is 0, expected a whole number from 1"),
    "half an epoch": ({"epochs": 1.5}, "epochs is 1.5, expected a whole number"),
    "scales": ({"size": 96, "scales": 2}, "scales is 2, expected a whole number from 0 to 1"),
    "rate": ({"rate": 0.0}, "rate is 0.0, expected a number above 0"),
    "NaN rate": ({"rate": float("nan")}, "rate is nan, expected a number above 0"),
    "infinite clip": ({"clip": float("inf")}, "clip is inf, expected a number above 0"),
    "too many queries": (
        {"queries": 9999, "size": 64, "scales": 0},
        "queries is 9999, but an input of 64 pixels has 84 cells",
    ),
    "ignored rate": (
        {"weights": Path("w.pth"), "freeze": "backbone", "backbone_rate": 0.7},
        "backbone_rate has no effect where freeze keeps the backbone",
    ),
    "average": ({"average": 1.0}, "average is 1.0, expected a decay"),
    "expand": ({"expand": 0.5}, "expand is 0.5, expected a number from 1 to 16"),
    "NaN expand": ({"expand": float("nan")}, "expand is nan, expected a number from 1 to 16"),
    "huge expand": ({"expand": 1000.0}, "expand is 1000.0, expected a number from 1 to 16"),
    "backbone rate": ({"backbone_rate": -5.0}, "backbone_rate is -5.0, expected a number from 0 up"),
    "NaN backbone rate": ({"backbone_rate": float("nan")}, "backbone_rate is nan"),
    "weight decay": ({"weight_decay": float("nan")}, "weight_decay is nan, expected a number from 0 up"),
    "seed": ({"seed": 99999999999999}, "seed is 99999999999999, expected a whole number from 0 to 4294967295"),
    "freeze": ({"freeze": "all"}, "freeze is 'all', expected backbone or norms"),
    "freeze from scratch": ({"freeze": "backbone"}, "freeze backbone would keep random weights; give the weights"),
    "val_images": ({"val_images": Path()}, "val_images is given without val"),
    "evaluate_every": ({"evaluate_every": 3}, "evaluate_every is given without val"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_values_outside_their_range_are_refused(case: str) -> None:
    changes, message = BAD_OPTIONS[case]
    with pytest.raises(OptionError, match=message):
        TrainOptions(Path(), Path(), Path(), **changes)


def test_the_command_trains_and_says_where_the_checkpoint_is(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "--data",
        str(data[0]),
        "--images",
        str(data[1]),
        "--val",
        str(data[0]),
        "--output",
        str(tmp_path / "run"),
    ]
    small = ["--size", "64", "--scales", "0", "--epochs", "1", "--batch", "4", "--layers", "1", "--workers", "0"]
    assert main([*command, *small, "--queries", "10", "--bf16"]) == 0
    text = capsys.readouterr().out
    assert "epoch 1/1  total " in text
    assert "AP50" in text
    assert f"checkpoint: {tmp_path / 'run'}" in text
    assert main([*command, "--variant", "r99"]) == 2
    assert "unknown variant 'r99'" in capsys.readouterr().err
    assert VARIANTS["r18"].layers == 3
