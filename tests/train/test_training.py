"""The training run: continued, tuned, frozen, and stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from rtdetr_deploy.errors import CheckpointError, OptionError, OutputError  # noqa: E402
from rtdetr_deploy.model import load_checkpoint  # noqa: E402
from rtdetr_train.initialize import build_model  # noqa: E402
from rtdetr_train.options import TrainOptions  # noqa: E402
from rtdetr_train.trainer import Epoch, Step, Watcher, train  # noqa: E402


class _Killed(Exception):
    pass


def test_a_killed_run_continues_to_the_same_weights(tiny_options: TrainOptions, tmp_path: Path) -> None:
    seen: list[Epoch] = []
    whole = train(tiny_options, Watcher(on_epoch=seen.append))
    assert [epoch.epoch for epoch in seen] == [0, 1]
    assert seen[0].accuracy is None
    assert seen[1].accuracy is not None

    def kill(step: Step) -> None:
        if step.epoch == 1 and step.step == 1:
            raise _Killed

    broken = replace(tiny_options, output=tmp_path / "broken")
    with pytest.raises(_Killed):
        train(broken, Watcher(on_step=kill))
    train(broken)
    expected = torch.load(tiny_options.output / "last.pth", weights_only=True)
    found = torch.load(broken.output / "last.pth", weights_only=True)
    for one, other in ((expected["model"], found["model"]), (expected["ema"]["module"], found["ema"]["module"])):
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
    assert expected["ema"]["updates"] == found["ema"]["updates"] == 6
    assert expected["train"]["optimizer"]["param_groups"] == found["train"]["optimizer"]["param_groups"]
    assert whole.parent == tiny_options.output


def test_checkpoints_open_as_released_ones_and_can_be_tuned_for_other_classes(
    train_options: TrainOptions, squares: tuple[Path, Path]
) -> None:
    path = train(replace(train_options, epochs=1, batch=5, val_annotations=None, evaluate_every=1))
    loaded = load_checkpoint(path)
    assert loaded.class_names == ("blue", "red")
    assert (loaded.variant.name, loaded.variant.classes, loaded.model.layers) == ("r18", 2, 1)
    tuned = build_model(replace(train_options, weights=path, layers=None, freeze="backbone"), ("a", "b", "c"))
    assert tuned.variant.classes == 3
    assert not any(parameter.requires_grad for parameter in tuned.backbone.parameters())
    own, source = tuned.state_dict(), loaded.model.state_dict()
    assert torch.equal(own["encoder.lateral_convs.0.conv.weight"], source["encoder.lateral_convs.0.conv.weight"])
    assert own["decoder.enc_score_head.weight"].shape == (3, 256)


def _from_weights(path: Path) -> dict[str, Any]:
    return {"weights": path, "val_annotations": None, "evaluate_every": 1}


def test_a_frozen_backbone_stays_as_it_is(train_options: TrainOptions, r18_checkpoint: Path) -> None:
    frozen = replace(train_options, epochs=1, batch=5, freeze="backbone", **_from_weights(r18_checkpoint))
    before = build_model(frozen, ("blue", "red")).state_dict()
    after = load_checkpoint(train(frozen)).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("backbone."))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("decoder."))


def test_frozen_norms_keep_statistics_and_gains_while_convolutions_train(
    train_options: TrainOptions, r18_checkpoint: Path
) -> None:
    frozen = replace(train_options, epochs=1, batch=5, freeze="norms", **_from_weights(r18_checkpoint))
    before = build_model(frozen, ("blue", "red")).state_dict()
    after = load_checkpoint(train(frozen)).model.state_dict()
    for name in before:
        if name.startswith("backbone.") and ".norm." in name:
            assert torch.equal(before[name], after[name]), name
    convolutions = [name for name in before if name.startswith("backbone.") and name.endswith("conv.weight")]
    assert any(not torch.equal(before[name], after[name]) for name in convolutions)


def test_an_output_that_cannot_be_written_is_named_before_training(tiny_options: TrainOptions) -> None:
    tiny_options.output.write_text("a file")
    with pytest.raises(OutputError, match="can't write"):
        train(tiny_options, Watcher(on_step=lambda step: pytest.fail("trained")))


def test_another_runs_folder_is_refused(tiny_options: TrainOptions) -> None:
    tiny_options.output.mkdir()
    (tiny_options.output / "last.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="can't be continued; choose another `output` folder"):
        train(tiny_options)
    torch.save({"class_names": ["x"]}, tiny_options.output / "last.pth")
    with pytest.raises(CheckpointError, match="trained on other classes"):
        train(tiny_options)


def test_a_run_of_another_version_is_refused(tiny_options: TrainOptions) -> None:
    tiny_options.output.mkdir()
    state = {"recipe": {"rate": "0.0001"}}
    torch.save({"class_names": ["blue", "red"], "train": state}, tiny_options.output / "last.pth")
    with pytest.raises(
        CheckpointError, match="last.pth is of a run of another version .* start from it with `weights`"
    ):
        train(tiny_options)


def test_a_run_that_diverges_stops_and_keeps_no_broken_weights(train_options: TrainOptions) -> None:
    with pytest.raises(OptionError, match="training diverged.* start anew with a lower `lr`"):
        train(replace(train_options, lr=1e30, warmup=0, epochs=4, val_annotations=None, evaluate_every=1))
    if (train_options.output / "last.pth").exists():
        load_checkpoint(train_options.output / "last.pth")


def test_a_variant_that_the_weights_are_not_is_refused(train_options: TrainOptions, r18_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="holds r18, not r101"):
        train(replace(train_options, weights=r18_checkpoint, variant="r101"))
    assert build_model(replace(train_options, weights=r18_checkpoint, variant="r18"), ("a", "b")).variant.name == "r18"


def test_boxes_outside_of_every_image_are_not_trained_on_in_silence(
    squares: tuple[Path, Path], tmp_path: Path, tiny_options: TrainOptions
) -> None:
    content = json.loads(squares[0].read_text())
    for image in content["images"]:
        image.update(width=4000, height=4000)
    for annotation in content["annotations"]:
        annotation["bbox"][0] += 500
    path = tmp_path / "outside.json"
    path.write_text(json.dumps(content))
    with pytest.raises(OptionError, match="outside.json showed an object in a whole epoch"):
        train(replace(tiny_options, annotations=path, val_annotations=None, evaluate_every=1))
    assert not (tiny_options.output / "last.pth").exists()


def test_other_options_do_not_continue_a_run(tiny_options: TrainOptions) -> None:
    train(replace(tiny_options, epochs=1, val_annotations=None, evaluate_every=1))
    with pytest.raises(CheckpointError, match=r"trained with other options \(`epochs`, `lr`\)"):
        train(replace(tiny_options, epochs=3, lr=5e-5, val_annotations=None, evaluate_every=1))


def test_validation_data_is_looked_at_before_training(train_options: TrainOptions, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="none.json does not exist"):
        train(
            replace(train_options, val_annotations=tmp_path / "none.json"),
            Watcher(on_step=lambda step: pytest.fail("trained")),
        )


def test_a_device_that_is_not_there_is_refused(train_options: TrainOptions) -> None:
    for device in ("gpu", "meta", "cuda:99"):
        with pytest.raises(OptionError, match=f"`device` '{device}' can't be used"):
            train(replace(train_options, device=device))
