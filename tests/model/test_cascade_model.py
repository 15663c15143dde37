"""The cascade in the torch model: what goes on, against the same computed by hiding instead of cutting."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from conftest import small_variant  # noqa: E402
from rtdetr_deploy import OptionError  # noqa: E402
from rtdetr_deploy.model import RTDETR, load_checkpoint  # noqa: E402
from rtdetr_deploy.model.family import RTDETR_FAMILY  # noqa: E402
from rtdetr_deploy.model.masked_cascade import cut_margin  # noqa: E402
from rtdetr_deploy.model.query_selection import QueryCut  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402


@pytest.fixture(scope="module")
def model() -> RTDETR:
    model = RTDETR(replace(small_variant(), classes=3, max_layers=4), 4).eval()
    fill_randomly(model, seed=7)
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    pixels: Tensor = torch.rand(2, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    return pixels


@pytest.mark.parametrize("cascade", [(1, 50), (3, 120), (2, 1)])
def test_cutting_queries_is_hiding_them(model: RTDETR, images: Tensor, cascade: tuple[int, int]) -> None:
    exact = copy.deepcopy(model).double()  # in float32 rounding swaps queries that are nearly equal
    exact.use_cascade(cascade)
    with torch.no_grad():
        found = exact(images.double())
        maps = exact.encode(images.double())
        assert found.logits.shape == (2, cascade[1], 3)
        for row in range(2):
            logits, boxes = RTDETR_FAMILY.decode(exact, [level[row : row + 1] for level in maps])
            assert torch.allclose(found.logits[row], logits[0], atol=1e-6)
            assert torch.allclose(found.boxes[row], boxes[0], atol=1e-6)


def test_only_the_best_go_on_and_earlier_layers_are_untouched(model: RTDETR, images: Tensor) -> None:
    with torch.no_grad():
        plain = model.forward_layers(images)
        model.use_cascade((2, 40))
        cut = model.forward_layers(images)
        model.use_cascade(None)
    assert [len(layer[0]) for layer in plain.logits] == [300] * 4
    assert [len(layer[0]) for layer in cut.logits] == [300, 40, 40, 40]
    assert [len(layer[0]) for layer in cut.boxes] == [300, 40, 40, 40]
    assert torch.equal(cut.logits[0], plain.logits[0])
    for row in range(2):
        scores = plain.logits[1][row].amax(-1)
        kept = cut.logits[1][row].amax(-1)
        assert torch.allclose(kept, scores.sort(descending=True).values[:40], atol=1e-5)
    assert not torch.allclose(cut.logits[3][0].amax(-1), plain.logits[3][0].amax(-1).topk(40).values, atol=1e-5)


def test_a_cascade_that_lets_all_go_on_changes_only_their_order(model: RTDETR, images: Tensor) -> None:
    with torch.no_grad():
        plain = model(images)
        model.use_cascade((1, 300))
        cut = model(images)
        model.use_cascade(None)
    for row in range(2):
        one, other = (output.boxes[row].sum(-1).sort().values for output in (plain, cut))
        assert torch.allclose(one, other, atol=1e-4)


def test_small_images_have_fewer_queries_than_go_on(model: RTDETR) -> None:
    model.use_cascade((1, 100))
    try:
        with torch.no_grad():
            assert model(torch.rand(1, 3, 64, 64)).logits.shape == (1, 84, 3)
        facts = RTDETR_FAMILY.facts(model, 64, 64)
        assert (facts.queries, facts.cascade, facts.output_queries) == (84, (1, 84), 84)
        assert RTDETR_FAMILY.facts(model, 128, 160).output_queries == 100
    finally:
        model.use_cascade(None)


def test_the_margin_is_that_of_the_closest_choice(model: RTDETR, images: Tensor) -> None:
    with torch.no_grad():
        maps = [level[:1] for level in model.encode(images)]
        selected = RTDETR_FAMILY.selection_margin(model, maps)
        scores = model.decoder(maps).logits[1][0].amax(-1).sort(descending=True).values
        model.use_cascade((2, 40))
        cut = cut_margin(model.decoder, maps)
        assert cut == pytest.approx(float(scores[39] - scores[40]), abs=1e-5)
        assert RTDETR_FAMILY.selection_margin(model, maps) == min(selected, cut)
        model.use_cascade((2, 300))
        assert cut_margin(model.decoder, maps) == float("inf")
        model.use_cascade(None)


def test_of_equal_scores_a_file_takes_the_first(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    torch.onnx.export(
        QueryCut(1, 5), (torch.zeros(2, 300, 3),), tmp_path / "cut.onnx", dynamo=False, opset_version=17,
        input_names=["logits"], output_names=["rows"],
    )  # fmt: skip
    logits = np.full((2, 300, 3), -1.0, np.float32)
    logits[0, [290, 7, 120], [0, 2, 1]] = 2.0
    logits[1, 299] = 3.0
    session = onnxruntime.InferenceSession(str(tmp_path / "cut.onnx"), providers=["CPUExecutionProvider"])
    rows = session.run(None, {"logits": logits})[0]
    assert rows.tolist() == [[7, 120, 290, 0, 1], [299, 0, 1, 2, 3]]


def test_a_model_can_not_keep_what_it_does_not_have(model: RTDETR, small_checkpoint: Path) -> None:
    for cascade, message in (((4, 100), "of 4 layers choose 1 to 3"), ((1, 301), "lets 301 of 300 queries go on")):
        with pytest.raises(OptionError, match=message):
            model.use_cascade(cascade)
    with pytest.raises(OptionError, match="of 2 layers choose 1 to 1"):
        load_checkpoint(small_checkpoint, layers=2, cascade=(2, 100))
    with pytest.raises(OptionError, match="lets 60 of 50 queries go on"):
        load_checkpoint(small_checkpoint, queries=50, cascade=(1, 60))
    assert load_checkpoint(small_checkpoint, cascade=(1, 60)).model.cascade == (1, 60)
