"""Box arithmetic of tensors: known boxes, bounds, gradients."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rtdetr_deploy.model.boxes import (  # noqa: E402
    cxcywh_to_xyxy,
    generalized_iou,
    iou,
    pairwise_iou,
    xyxy_to_cxcywh,
)

ONE = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
OTHER = torch.tensor([[1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 3.0, 1.0], [0.0, 0.0, 1.0, 1.0]])


def test_corners_of_a_known_box_and_back() -> None:
    box = torch.tensor([[[10.0, 20.0, 4.0, 6.0]]])
    assert cxcywh_to_xyxy(box).tolist() == [[[8.0, 17.0, 12.0, 23.0]]]
    assert torch.equal(xyxy_to_cxcywh(cxcywh_to_xyxy(box)), box)


def test_iou_and_generalized_iou_of_known_pairs() -> None:
    assert iou(ONE, OTHER).tolist() == pytest.approx([1 / 7, 0.0, 0.0])
    assert generalized_iou(ONE, OTHER).tolist() == pytest.approx([1 / 7 - 2 / 9, -1 / 3, 0.0])


def test_pairwise_iou_is_the_table_of_all_pairs() -> None:
    table = pairwise_iou(ONE, OTHER[:2])
    assert table.shape == (3, 2)
    assert table.tolist() == [[iou(a, b).item() for b in OTHER[:2]] for a in ONE]
    assert pairwise_iou(ONE, OTHER[:0]).shape == (3, 0)


def test_generalized_iou_lies_between_minus_one_and_iou() -> None:
    boxes = cxcywh_to_xyxy(torch.rand(2, 500, 4, generator=torch.Generator().manual_seed(0)))
    found, limit = generalized_iou(boxes[0], boxes[1]), iou(boxes[0], boxes[1])
    assert bool((found <= limit + 1e-6).all())
    assert bool((found > -1.0).all())
    assert torch.allclose(generalized_iou(boxes[0], boxes[0]), torch.ones(500), atol=1e-5)


def test_boxes_of_no_area_have_iou_0_and_finite_gradients() -> None:
    point = torch.full((1, 4), 0.5, requires_grad=True)
    assert iou(point, point).tolist() == [0.0]
    (gradient,) = torch.autograd.grad((iou(point, point) + generalized_iou(point, point)).sum(), point)
    assert bool(torch.isfinite(gradient).all())
