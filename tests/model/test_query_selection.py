"""Anchors and query selection."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from rtdetr_deploy.model import RTDETR, VARIANTS  # noqa: E402
from rtdetr_deploy.model.hybrid_encoder import position_embedding  # noqa: E402
from rtdetr_deploy.model.query_selection import make_anchors  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402


def test_anchors_are_finite_and_follow_height_and_width() -> None:
    logits, valid = (torch.from_numpy(array) for array in make_anchors(((60, 100), (30, 50), (15, 25))))
    assert torch.isfinite(logits).all()
    assert torch.isfinite(logits.half()).all()
    boxes = logits.sigmoid()
    columns, last_of_first_row = 100, 99
    assert boxes[columns * 30 + 50, 0] == pytest.approx(50.5 / 100, abs=1e-6)
    assert boxes[columns * 30 + 3, 1] == pytest.approx(30.5 / 60, abs=1e-6)
    assert boxes[-1, 2] == pytest.approx(0.2, abs=1e-6)
    assert valid[last_of_first_row] == 0
    assert boxes[last_of_first_row].tolist() == [1.0, 1.0, 1.0, 1.0]


def test_position_embedding_is_x_major_for_rectangles() -> None:
    table = torch.from_numpy(position_embedding(2, 3, 8)[0])
    x_of_row = [0, 0, 1, 1, 2, 2]
    expected = torch.sin(torch.tensor(x_of_row, dtype=torch.float32))
    assert torch.allclose(table[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("queries", [10, 300])
def test_small_images_give_as_many_queries_as_there_are_tokens(queries: int) -> None:
    model = RTDETR(replace(VARIANTS["r18"], queries=queries), 1).eval()
    fill_randomly(model)
    with torch.no_grad():
        logits, boxes = model(torch.rand(2, 3, 64, 64))
    assert logits.shape == (2, min(queries, 84), 80)
    assert ((boxes >= 0) & (boxes <= 1)).all()


def test_a_model_used_in_inference_mode_can_be_trained_afterwards() -> None:
    model = RTDETR(VARIANTS["r18"], 1)
    with torch.inference_mode():
        model.eval()(torch.rand(1, 3, 96, 160))
    model.train()(torch.rand(2, 3, 96, 160)).boxes.sum().backward()


def test_rows_of_a_batch_do_not_mix() -> None:
    model = RTDETR(VARIANTS["r18"], 2).eval()
    fill_randomly(model)
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for sampler in ("grid", "gather"):
            model.use_sampler(sampler)
            together = model(images)
            alone = model(images[1:])
            assert torch.allclose(together.boxes[1:], alone.boxes, atol=1e-4)
