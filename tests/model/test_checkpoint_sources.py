"""The table of sources, and files of those that are known by name only."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from checkpoint_states import r18_state, save_variant  # noqa: E402
from rtdetr_deploy.errors import CheckpointError  # noqa: E402
from rtdetr_deploy.model import load_checkpoint  # noqa: E402
from rtdetr_deploy.model.checkpoints import released  # noqa: E402
from rtdetr_deploy.model.checkpoints.load import SOURCES  # noqa: E402
from rtdetr_deploy.model.checkpoints.read import Content, read_content  # noqa: E402
from rtdetr_deploy.model.checkpoints.source import Weights  # noqa: E402


class _Toy:
    """A source whose files hold released weights as one list per tensor kind, with a name of their own."""

    @staticmethod
    def matches(content: Content) -> bool:
        return isinstance(content.value, dict) and content.value.get("format") == "toy"

    @staticmethod
    def convert(content: Content) -> Weights:
        state = {key.replace("/", "."): value for key, value in content.value["tensors"]}
        return Weights(
            state=state,
            class_names=content.value["labels"],
            input_size=(320, 480),
            queries=50,
            sampling="discrete",
        )


def test_a_source_is_added_by_one_line_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.toy"
    tensors = [(key.replace(".", "/"), value) for key, value in r18_state().items()]
    labels = [f"toy {index}" for index in range(80)]
    torch.save({"format": "toy", "tensors": tensors, "labels": labels}, path)
    with pytest.raises(CheckpointError, match="holds no weights .*its keys are 'format', 'tensors', 'labels'"):
        load_checkpoint(path)

    monkeypatch.setitem(SOURCES, "toy repository", _Toy)
    loaded = load_checkpoint(path)
    assert loaded.class_names == tuple(labels)
    assert loaded.input_size == (320, 480)
    assert (loaded.variant.name, loaded.variant.sampling, loaded.variant.queries) == ("r18-dsp", "discrete", 50)
    learned = "decoder.enc_output.proj.weight"
    assert torch.equal(loaded.model.state_dict()[learned], r18_state()[learned])


def test_an_unknown_file_is_told_every_known_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.pth"
    monkeypatch.setitem(SOURCES, "a third repository", _Toy)
    for content in ({"model": {"epoch": 3}}, {"conv.weight": torch.zeros(2)}):
        torch.save(content, path)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        assert all(name in str(caught.value) for name in SOURCES), str(caught.value)


def test_each_source_recognises_its_own_files_alone(tmp_path: Path) -> None:
    torch.save({"net.model.decoder.layers.0.fc1.weight": torch.zeros(2)}, tmp_path / "hugging_face.pth")
    torch.save({"ema": {"module": r18_state()}}, tmp_path / "released.pth")
    for name, expected in (
        ("hugging_face.pth", "Hugging Face transformers"),
        ("released.pth", "the RT-DETR repositories"),
    ):
        content = read_content(tmp_path / name)
        assert [source for source, module in SOURCES.items() if module.matches(content)] == [expected]


@pytest.mark.parametrize("runs_all_layers", [False, True])
def test_a_source_tells_whether_all_layers_run(
    runs_all_layers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pth"
    save_variant(path, "r50-m")
    convert = released.convert
    monkeypatch.setattr(released, "convert", lambda content: replace(convert(content), runs_all_layers=runs_all_layers))
    assert load_checkpoint(path).model.layers == (6 if runs_all_layers else 3)


def test_files_of_ultralytics_are_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rtdetr-l.pt"
    module = ModuleType("ultralytics.nn.tasks")
    module.RTDETRDetectionModel = type("RTDETRDetectionModel", (), {"__module__": module.__name__})  # type: ignore[attr-defined]
    for name in ("ultralytics", "ultralytics.nn", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    torch.save({"model": module.RTDETRDetectionModel()}, path)
    with pytest.raises(CheckpointError, match=r"was written by Ultralytics \(ultralytics.nn.tasks.*Export it there"):
        load_checkpoint(path)
    torch.save({"model.0.stem1.conv.weight": torch.zeros(2), "model.28.decoder.layers.0.x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"was written by Ultralytics \(its weights are called model.0.stem1"):
        load_checkpoint(path)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["rtdetr_r18vd.pdparams", "renamed.pth"])
def test_files_of_paddle_are_called_so(name: str, protocol: int, tmp_path: Path) -> None:
    state = {"transformer.enc_output.0.weight": np.zeros((2, 2), np.float32)}
    content = {**state, "StructuredToParameterName@@": {key: f"linear_{index}" for index, key in enumerate(state)}}
    (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(CheckpointError, match=r"was written by PaddlePaddle.*Take the PyTorch one of the same model"):
        load_checkpoint(tmp_path / name)


def test_other_pickles_of_arrays_are_not_called_paddle(tmp_path: Path) -> None:
    (tmp_path / "arrays.pth").write_bytes(pickle.dumps({"weight": np.zeros(3, np.float32)}, 2))
    with pytest.raises(CheckpointError, match="is a pickle that asks for numpy"):
        load_checkpoint(tmp_path / "arrays.pth")
