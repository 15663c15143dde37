"""Folding of RepVGG branches and batch normalization."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from conftest import slow_except

torch = pytest.importorskip("torch")

from rtdetr_deploy.model import RTDETR, VARIANTS, reparameterize  # noqa: E402
from rtdetr_deploy.model import reparameterize as reparameterize_function  # noqa: E402
from rtdetr_deploy.model.hybrid_encoder import RepVggBlock  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402

IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", slow_except(VARIANTS, "r18", "r50", "hgnetv2-l"))
def test_every_variant_keeps_its_output_and_loses_all_batch_norms(name: str) -> None:
    model = RTDETR(replace(VARIANTS[name], queries=20), 1).eval()
    fill_randomly(model)
    folded = reparameterize(model)
    assert not [m for m in folded.modules() if isinstance(m, (torch.nn.BatchNorm2d, RepVggBlock))]
    assert [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)], "the model itself must stay as it is"
    with torch.no_grad():
        before = model.encoder(model.backbone(IMAGES))
        after = folded.encoder(folded.backbone(IMAGES))
    for x, y in zip(before, after, strict=True):
        assert (x - y).abs().max() <= 1e-4 * x.abs().max()


def test_only_batch_norms_with_running_statistics_are_folded() -> None:
    from rtdetr_deploy.model.layers.conv_norm import fuse_conv_norm

    with pytest.raises(TypeError, match="expected a BatchNorm2d with running statistics, got GroupNorm"):
        fuse_conv_norm(torch.nn.Conv2d(4, 4, 1), torch.nn.GroupNorm(2, 4))


def test_a_wrong_fold_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules[reparameterize_function.__module__]
    right = module.fuse_conv_norm

    def wrong(conv: Any, norm: Any) -> Any:
        fused = right(conv, norm)
        fused.bias.data += 1e-3
        return fused

    monkeypatch.setattr(module, "fuse_conv_norm", wrong)
    model = RTDETR(VARIANTS["r18"], 1)
    fill_randomly(model)
    with pytest.raises(ArithmeticError, match="changed its output"):
        reparameterize(model)
