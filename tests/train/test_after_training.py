"""What is done with a trained checkpoint: publishing, input size, the study of query selection."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from rtdetr_bench.accuracy import open_any  # noqa: E402
from rtdetr_bench.options import RunOptions  # noqa: E402
from rtdetr_deploy.errors import CheckpointError, OptionError, OutputError  # noqa: E402
from rtdetr_deploy.model import RTDETR, VARIANTS, load_checkpoint  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402
from rtdetr_train import publish as publish_command  # noqa: E402
from rtdetr_train import selection_study  # noqa: E402
from rtdetr_train.checkpoint import save_checkpoint  # noqa: E402
from rtdetr_train.data.coco import CocoData, read_coco  # noqa: E402
from rtdetr_train.memory import keep_freed_memory  # noqa: E402
from rtdetr_train.optim import make_ema  # noqa: E402
from rtdetr_train.publish import publish  # noqa: E402
from rtdetr_train.selection_study import selected_queries, summarize  # noqa: E402

SIZE = 96


@pytest.fixture(scope="module")
def model() -> RTDETR:
    variant = replace(VARIANTS["r18"], classes=2, queries=20)
    model = RTDETR(variant, 1)
    fill_randomly(model, seed=3)
    with torch.no_grad():
        model.decoder.enc_score_head.bias[1] += 4.0  # else every query is sure to be of the other class
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(model: RTDETR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best.pth"
    ema = make_ema(model, 0.9, 10.0)
    state = {"epoch": 1, "optimizer": ema.module.state_dict()}
    save_checkpoint(path, model, ema, ("blue", "red"), (SIZE, SIZE), state)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    folder = tmp_path_factory.mktemp("data")
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(0, 255, (70, 90, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    content = {
        "images": [{"id": number, "file_name": f"{number}.png", "width": 90, "height": 70} for number in (1, 2)],
        "categories": [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [10, 10, 40, 30], "area": 1200}],
    }
    (folder / "data.json").write_text(json.dumps(content))
    return read_coco(folder / "data.json", folder)


def test_a_published_file_is_small_and_gives_nearly_the_same(
    checkpoint: Path, model: RTDETR, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "cells.pth"
    assert publish_command.main([str(checkpoint), str(target)]) == 0
    assert target.stat().st_size < checkpoint.stat().st_size * 0.3
    assert str(target) in capsys.readouterr().out
    content = torch.load(target, weights_only=True)
    assert set(content) == {"ema", "class_names", "input_size"}
    loaded = load_checkpoint(target)
    assert loaded.class_names == ("blue", "red")
    assert loaded.input_size == (SIZE, SIZE)
    own, given = model.state_dict(), loaded.model.state_dict()
    for name, value in own.items():
        if value.ndim > 1:
            assert torch.equal(value.half().float(), given[name]), name
        elif value.is_floating_point():
            assert torch.equal(value, given[name]), name


def test_publishing_can_name_another_size(checkpoint: Path, tmp_path: Path) -> None:
    assert publish_command.main([str(checkpoint), str(tmp_path / "x.pth"), "--size", "64x128"]) == 0
    assert load_checkpoint(tmp_path / "x.pth").input_size == (64, 128)


def test_publishing_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="not"):
        publish(tmp_path / "x.pth", tmp_path / "y.pth")
    assert not (tmp_path / "y.pth").exists()


def test_publishing_refuses_what_would_be_lost_or_ignored(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checkpoint.read_bytes()
    cases = {
        (str(checkpoint), "--size", "64"): "the file to write would overwrite the input",
        (str(tmp_path / "m.onnx"),): "m.onnx would hold a checkpoint; end its name with .pth or .pt",
        (str(tmp_path / "m.pth"), "--size", "100"): "--size is 100x100, expected multiples of 32",
        (str(tmp_path / "m.pth"), "--size", "320000"): "--size is 320000x320000, expected multiples of 32",
        (str(tmp_path),): "would hold a checkpoint",
    }
    for command, message in cases.items():
        assert publish_command.main([str(checkpoint), *command]) == 2
        line = capsys.readouterr().err
        assert line.startswith("rtdetr_train.publish: ")
        assert message in line
    with pytest.raises(SystemExit):
        publish_command.main([str(checkpoint), str(tmp_path / "m.pth"), "--size", "abc"])
    assert "size 'abc' is not understood" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_called_so_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"can't write .*cells.pth: File too large$"):
            publish(checkpoint, tmp_path / "cells.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_what_a_killed_save_left_is_gone_after_the_next_one(checkpoint: Path, model: RTDETR, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, torch; from pathlib import Path\n"
        "from rtdetr_train.checkpoint import write_checkpoint\n"
        "torch.save = lambda content, file: (file.write(b'half'), file.flush(), os.kill(os.getpid(), signal.SIGKILL))\n"
        "write_checkpoint(Path(sys.argv[1]), {})"
    )
    path = tmp_path / "last.pth"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert [found.name == path.name for found in tmp_path.iterdir()] == [False]
    save_checkpoint(path, model, make_ema(model, 0.9, 10.0), ("blue", "red"), (SIZE, SIZE), {})
    assert list(tmp_path.iterdir()) == [path]


def test_a_diverged_run_says_whether_there_is_a_checkpoint(model: RTDETR, tmp_path: Path) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.decoder.enc_score_head.bias[0] = torch.nan
    path = tmp_path / "last.pth"
    for message in ("there is no checkpoint yet", "last.pth is kept as it was"):
        with pytest.raises(OptionError, match=f"training diverged; .*{message}: start anew with a lower `lr`"):
            save_checkpoint(path, broken, make_ema(model, 0.9, 10.0), ("blue", "red"), (SIZE, SIZE), {})
        path.touch()


def test_the_study_overwrites_no_input(checkpoint: Path, data: CocoData, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data.files[0].parent
    before = (folder / "data.json").read_bytes()
    command = ["--weights", str(checkpoint), "--annotations", str(folder / "data.json"), "--images", str(folder)]
    assert selection_study.main([*command, "--json", str(folder / "data.json")]) == 2
    assert "--json would overwrite the input" in capsys.readouterr().err
    assert (folder / "data.json").read_bytes() == before


def test_checkpoints_run_at_the_size_that_they_name(checkpoint: Path) -> None:
    with open_any(checkpoint) as predictor:
        assert predictor.input_size == (SIZE, SIZE)
    with open_any(checkpoint, RunOptions(size=(64, 128))) as predictor:
        assert predictor.input_size == (64, 128)


@pytest.mark.parametrize("stored", [[96], [100, 96], ["96", "96"], 96, None, [32, 32]])
def test_an_input_size_that_no_model_takes_is_passed_over(stored: object, model: RTDETR, tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    torch.save({"model": model.state_dict(), "input_size": stored}, path)
    assert load_checkpoint(path).input_size is None


def test_correlation_tells_ordered_scores_from_others() -> None:
    overlaps = np.linspace(0.0, 1.0, 11).astype(np.float32)
    tied = summarize(overlaps**2, overlaps)
    assert tied.spearman == pytest.approx(1.0)
    assert 0.9 < tied.pearson < 1.0
    assert (tied.queries, tied.sure, tied.sure_and_placed) == (11, 3, 3)
    assert summarize(1.0 - overlaps, overlaps).pearson == pytest.approx(-1.0)
    assert summarize(1.0 - overlaps, overlaps).sure_and_placed == 0
    with pytest.raises(OptionError, match="is the model trained"):
        summarize(overlaps, np.zeros_like(overlaps))


def test_selected_queries_overlap_objects_of_their_class_only(model: RTDETR, data: CocoData) -> None:
    scores, overlaps = selected_queries(model, data, (SIZE, SIZE))
    assert scores.shape == overlaps.shape == (40,)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (overlaps[20:] == 0).all()  # the second picture is empty
    with torch.no_grad():
        bias = model.decoder.enc_score_head.bias
        kept = bias.clone()
        bias[0] += 100.0  # every query is sure to be of the class without objects
        _, others = selected_queries(model, data, (SIZE, SIZE))
        bias.copy_(kept)
        bias[1] += 100.0
        _, same = selected_queries(model, data, (SIZE, SIZE))
        bias.copy_(kept)
    assert (others == 0).all()
    assert same[:20].max() > 0


def test_the_study_prints_and_writes_a_row_per_checkpoint(
    checkpoint: Path, data: CocoData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data.files[0].parent
    command = ["--weights", str(checkpoint), "--annotations", str(folder / "data.json"), "--images", str(folder)]
    assert selection_study.main([*command, "--json", str(tmp_path / "study.json")]) == 0
    rows = json.loads((tmp_path / "study.json").read_text())["checkpoints"]
    assert (
        rows[f"{checkpoint.parent.name}/best.pth"]["queries"] == 378
    )  # all tokens of two pictures: fewer than 300 each
    assert "Pearson" in capsys.readouterr().out


def test_the_allocator_setting_says_whether_it_took() -> None:
    assert keep_freed_memory() in (True, False)
