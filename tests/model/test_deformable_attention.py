"""The samplers against each other and against plain definitions."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rtdetr_deploy.model.layers.deformable_attention import SAMPLERS  # noqa: E402

SIZES = [(6, 9), (3, 5), (2, 2)]
POINTS = [4, 2, 3]
TOKENS = sum(h * w for h, w in SIZES)


def _inputs(low: float, high: float) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(5)
    value = torch.randn(3, TOKENS, 8, 4, generator=generator)
    locations = torch.rand(3, 7, 8, sum(POINTS), 2, generator=generator) * (high - low) + low
    weights = torch.rand(3, 7, 8, sum(POINTS), generator=generator).softmax(-1)
    return value, locations, weights


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.3, 1.3), (-1e6, 1e6)])
def test_gather_equals_grid_inside_at_the_border_and_far_outside(low: float, high: float) -> None:
    value, locations, weights = _inputs(low, high)
    expected = SAMPLERS["grid"](POINTS)(value, locations, weights, SIZES)
    found = SAMPLERS["gather"](POINTS)(value, locations, weights, SIZES)
    assert found.shape == (3, 7, 32)
    assert (found - expected).abs().max() <= 2e-6


def test_gather_hits_cell_centres_exactly() -> None:
    value, _, _ = _inputs(0, 1)
    x, y = 4, 2
    locations = torch.tensor([(x + 0.5) / 9, (y + 0.5) / 6]).expand(3, 1, 8, sum(POINTS), 2)
    weights = torch.zeros(3, 1, 8, sum(POINTS))
    weights[..., 0] = 1.0
    found = SAMPLERS["gather"](POINTS)(value, locations, weights, SIZES).reshape(3, 8, 4)
    assert torch.allclose(found, value[:, y * 9 + x], atol=1e-6)


def test_discrete_clamps_each_axis_by_its_own_size() -> None:
    value, _, _ = _inputs(0, 1)
    locations = torch.tensor([0.99, 5.0]).expand(3, 1, 8, sum(POINTS), 2)
    weights = torch.zeros(3, 1, 8, sum(POINTS))
    weights[..., 0] = 1.0
    found = SAMPLERS["discrete"](POINTS)(value, locations, weights, SIZES).reshape(3, 8, 4)
    assert torch.equal(found, value[:, 5 * 9 + 8])
