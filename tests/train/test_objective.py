"""Matching, losses and denoising against the released implementation and against nonsense."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from golden_files import GOLDEN

if TYPE_CHECKING:
    from torch import Tensor

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from rtdetr_deploy.model import RTDETR, VARIANTS  # noqa: E402
from rtdetr_deploy.model.boxes import cxcywh_to_xyxy, iou  # noqa: E402
from rtdetr_deploy.model.decoder import ExtraQueries  # noqa: E402
from rtdetr_train.denoising import make_denoising  # noqa: E402
from rtdetr_train.initialize import initialize  # noqa: E402
from rtdetr_train.losses import losses_of_predictions, objective, varifocal_loss  # noqa: E402
from rtdetr_train.matcher import Matches, Targets, join_targets, match  # noqa: E402


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Any], Targets]:
    arrays = dict(np.load(GOLDEN / "loss_v1.npz"))
    targets = join_targets(
        [
            (torch.from_numpy(arrays[f"target_labels{i}"]).long(), torch.from_numpy(arrays[f"target_boxes{i}"]))
            for i in range(3)
        ]
    )
    return arrays, targets


def _match_one(logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
    return match(logits[None], boxes[None], targets)[0]


def test_assignment_is_the_released_one(golden: tuple[dict[str, Any], Targets]) -> None:
    arrays, targets = golden
    matches = _match_one(torch.from_numpy(arrays["logits0"]), torch.from_numpy(arrays["boxes0"]), targets)
    for image, place in enumerate(targets.rows):
        rows = matches.image == image
        found = dict(zip(matches.query[rows].tolist(), (matches.target[rows] - place.start).tolist(), strict=True))
        expected = zip(arrays[f"match_query{image}"].tolist(), arrays[f"match_target{image}"].tolist(), strict=True)
        assert found == dict(expected)


@pytest.mark.parametrize(("index", "suffix"), [(0, ""), (1, "_aux_0"), (2, "_aux_1")])
def test_losses_match_the_released_ones_within_1e_5(
    index: int, suffix: str, golden: tuple[dict[str, Any], Targets]
) -> None:
    arrays, targets = golden
    logits, boxes = (torch.from_numpy(arrays[f"{name}{index}"]) for name in ("logits", "boxes"))
    losses = losses_of_predictions(logits, boxes, targets, _match_one(logits, boxes, targets), len(targets))
    for name, value in losses.items():
        assert float(value) == pytest.approx(float(arrays[f"loss_{name}{suffix}"]), abs=1e-5)


def test_varifocal_loss_of_known_scores() -> None:
    logits = torch.tensor([[[0.0, -1.0, 2.0]]], requires_grad=True)
    quality, positive = torch.tensor([[[0.6, 0.0, 0.0]]]), torch.tensor([[[1.0, 0.0, 1.0]]])
    loss = varifocal_loss(logits, quality, positive)
    score = 1 / (1 + math.exp(1.0))
    expected = 0.6 * math.log(2.0) - 0.75 * score**2 * math.log(1 - score)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    torch.autograd.backward(loss)
    # A positive pulls towards its quality, a negative down by its weight; a pair of no overlap has no weight.
    assert logits.grad is not None
    assert logits.grad[0, 0].tolist() == pytest.approx([0.6 * (0.5 - 0.6), 0.75 * score**2 * score, 0.0])


def test_sets_are_matched_as_each_would_be_alone(golden: tuple[dict[str, Any], Targets]) -> None:
    arrays, targets = golden
    logits, boxes = (
        torch.from_numpy(np.stack([arrays[f"{name}{i}"] for i in range(3)])) for name in ("logits", "boxes")
    )
    together = match(logits, boxes, targets)
    assert len(together) == 3
    for index, matches in enumerate(together):
        alone = _match_one(logits[index], boxes[index], targets)
        for part in ("image", "query", "target"):
            assert torch.equal(getattr(matches, part), getattr(alone, part))
    assert not torch.equal(together[0].query, together[1].query)


EMPTY = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
ONE = torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]])
ONE_AND_NONE = join_targets([ONE, EMPTY])
CASES = {
    "no object in one image": [EMPTY, ONE],
    "no object at all": [EMPTY, EMPTY],
    "more objects than queries": [
        (torch.randint(0, 3, (40,)), torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3),
        ONE,
    ],
    "boxes without area": [
        (torch.tensor([0, 2]), torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 1e-9, 1.0]])),
        ONE,
    ],
    "boxes at the border": [(torch.tensor([0]), torch.tensor([[0.5, 0.5, 1.0, 1.0]])), ONE],
}


def _train_step(targets: Targets, classes: int = 3) -> dict[str, Any]:
    torch.manual_seed(0)
    model = RTDETR(replace(VARIANTS["r18"], classes=classes, queries=20)).train()
    initialize(model)
    generator = torch.Generator().manual_seed(0)
    denoising = make_denoising(targets, model.decoder.denoising_class_embed, 20, amount=30, generator=generator)
    extra = ExtraQueries(denoising.content, denoising.reference, denoising.mask) if denoising else None
    images = torch.rand(2, 3, 64, 96, generator=generator)
    losses = objective(model.forward_layers(images, extra), targets, denoising)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    return losses


@pytest.mark.parametrize("case", CASES)
def test_difficult_targets_train_without_nan(case: str) -> None:
    losses = _train_step(join_targets(CASES[case]))
    assert all(torch.isfinite(value) for value in losses.values())
    parts = 3 + 1 + (0 if case == "no object at all" else 3)
    assert len(losses) == 3 * parts


def test_one_class_trains() -> None:
    target = torch.tensor([0]), torch.tensor([[0.4, 0.4, 0.3, 0.3]])
    losses = _train_step(join_targets([target, target]), classes=1)
    assert all(torch.isfinite(value) for value in losses.values())


def test_matching_queries_do_not_see_noised_ones() -> None:
    torch.manual_seed(0)
    model = RTDETR(replace(VARIANTS["r18"], classes=3, queries=20)).eval()
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    noised = [
        make_denoising(
            ONE_AND_NONE, model.decoder.denoising_class_embed, 20, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 2)
    ]
    with torch.no_grad():
        alone = model(images)
        for denoising in noised:
            assert denoising is not None
            extra = ExtraQueries(denoising.content, denoising.reference, denoising.mask)
            output = model.forward_layers(images, extra)
            assert torch.allclose(output.boxes[-1][:, denoising.count :], alone.boxes, atol=1e-5)


def test_groups_see_themselves_and_the_matching_queries_alone() -> None:
    embedding = torch.nn.Embedding(4, 8)
    denoising = make_denoising(
        join_targets([ONE]), embedding, queries=1, amount=2, generator=torch.Generator().manual_seed(0)
    )
    assert denoising is not None
    seen = (denoising.mask == 0).int().tolist()
    assert seen == [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]


def test_the_objective_is_the_sum_of_its_parts() -> None:
    torch.manual_seed(0)
    model = RTDETR(replace(VARIANTS["r18"], classes=3, queries=20)).train()
    denoising = make_denoising(ONE_AND_NONE, model.decoder.denoising_class_embed, 20)
    assert denoising is not None
    extra = ExtraQueries(denoising.content, denoising.reference, denoising.mask)
    output = model.forward_layers(torch.rand(2, 3, 64, 96), extra)
    losses = objective(output, ONE_AND_NONE, denoising)
    selection = output.selection
    selected = selection.scores, selection.reference.sigmoid()
    encoder = losses_of_predictions(*selected, ONE_AND_NONE, _match_one(*selected, ONE_AND_NONE), 1.0)
    noised = output.logits[1][:, : denoising.count], output.boxes[1][:, : denoising.count]
    noise = losses_of_predictions(*noised, ONE_AND_NONE, denoising.matches, float(denoising.groups))
    for name in ("vfl", "bbox", "giou"):
        assert torch.allclose(losses[f"{name}_enc"], encoder[name])
        assert torch.allclose(losses[f"{name}_dn_1"], noise[name])


def test_gradients_end_where_the_released_training_ends_them() -> None:
    torch.manual_seed(0)
    model = RTDETR(replace(VARIANTS["r18"], classes=3, queries=20)).train()
    output = model.forward_layers(torch.rand(2, 3, 64, 96))
    torch.autograd.backward(output.boxes[2].sum())
    decoder = model.decoder
    reached = [next(head.parameters()).grad is not None for head in decoder.dec_bbox_head]
    assert reached == [False, True, True], "a layer's boxes train its own head and the one before"
    assert next(decoder.enc_bbox_head.parameters()).grad is None, "the selection has losses of its own"
    assert decoder.enc_output.proj.weight.grad is None


def test_boxes_are_float32_under_autocast() -> None:
    model = RTDETR(replace(VARIANTS["r18"], classes=3, queries=20)).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model.forward_layers(torch.rand(2, 3, 64, 96))
    assert output.selection.reference.dtype == torch.float32
    assert {boxes.dtype for boxes in output.boxes} == {torch.float32}


def test_groups_are_positives_then_negatives_of_every_target() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.2]])
    targets = join_targets([(torch.tensor([0, 2]), boxes), ONE])
    embedding = torch.nn.Embedding(4, 8)
    denoising = make_denoising(targets, embedding, 20, amount=40, generator=torch.Generator().manual_seed(0))
    assert denoising is not None
    assert (denoising.groups, denoising.count) == (20, 80)
    found = cxcywh_to_xyxy(denoising.reference.sigmoid()[0]).reshape(20, 2, 2, 4)
    moved = (found - cxcywh_to_xyxy(boxes)).abs() / (boxes[:, 2:].repeat(1, 2) / 2)
    assert moved[:, 0].max() <= 1.0 + 1e-3
    overlap = iou(found, cxcywh_to_xyxy(boxes))
    assert overlap[:, 0].mean() > 2 * overlap[:, 1].mean()
    assert denoising.matches.query[:2].tolist() == [0, 1]
    assert len(denoising.matches.query) == 20 * 3
