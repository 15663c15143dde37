"""The form for CPUs: the same outputs with fewer products, and names that precision finds."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from conftest import slow_except

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from rtdetr_deploy.errors import OptionError  # noqa: E402
from rtdetr_deploy.model import RTDETR, VARIANTS, reparameterize  # noqa: E402
from rtdetr_deploy.model.cpu_form import CpuDecoder, CpuEncoder  # noqa: E402
from rtdetr_deploy.model.cpu_form.encoder import UpsamplingFusion  # noqa: E402
from rtdetr_deploy.model.family import RTDETR_FAMILY  # noqa: E402
from rtdetr_deploy.model.fp32_scope import match_module  # noqa: E402
from rtdetr_deploy.model.query_selection import make_anchors  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402

WIDE = (64, 416)
"""Cells of the finest level are so narrow that anchors in the first and last column are invalid."""


def _forms(
    name: str,
    sampler: str = "gather",
    layers: int = 2,
    queries: int = 20,
    precision: str = "fp32",
    cascade: tuple[int, int] | None = None,
) -> tuple[RTDETR, RTDETR]:
    """Return a folded model and its form for CPUs, both float64: what differs is not rounding then."""
    model = RTDETR(replace(VARIANTS[name], queries=queries), layers).eval()
    fill_randomly(model)
    folded = reparameterize(model)
    folded.use_sampler(sampler)
    RTDETR_FAMILY.use_cascade(folded, cascade)
    changed = copy.deepcopy(folded)
    RTDETR_FAMILY.to_cpu_form(changed, precision)
    return folded.double(), changed.double()


def _images(size: tuple[int, int], batch: int = 2) -> Any:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _differences(before: RTDETR, after: RTDETR, size: tuple[int, int]) -> tuple[float, float]:
    with torch.no_grad():
        expected, found = before(_images(size)), after(_images(size))
    return tuple(float((x - y).abs().max()) for x, y in zip(expected, found, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("name", slow_except(VARIANTS, "r18", "r50", "hgnetv2-l"))
def test_every_variant_computes_the_same(name: str) -> None:
    sampler = "discrete" if VARIANTS[name].sampling == "discrete" else "gather"
    logits, boxes = _differences(*_forms(name, sampler), (64, 96))
    assert logits < 1e-4  # float32 weights are products of float32 weights
    assert boxes < 1e-6


@pytest.mark.parametrize("sampler", ["gather", "grid", "discrete"])
def test_every_sampler_computes_the_same(sampler: str) -> None:
    before, after = _forms("r18", sampler)
    assert isinstance(after.decoder, CpuDecoder) == (sampler != "grid")
    assert isinstance(after.encoder, CpuEncoder)
    assert after.sampler == sampler
    logits, boxes = _differences(before, after, (64, 96))
    assert logits < 1e-4
    assert boxes < 1e-6


@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_tokens_without_a_valid_anchor_are_what_they_were(shift: float) -> None:
    """Selected last; or, where all other tokens score badly, first."""
    valid = make_anchors(((8, 52), (4, 26), (2, 13)))[1]
    assert 0 < (valid == 0).sum() < 40
    model = RTDETR(replace(VARIANTS["r18"], queries=40), 1).eval()
    fill_randomly(model)
    with torch.no_grad():  # valid tokens differ from the blank one by what the norm's scale lets through
        norm, head = model.decoder.enc_output.norm, model.decoder.enc_score_head
        blank = norm(model.decoder.enc_output.proj.bias)
        head.weight += shift * blank / (blank @ blank)
    before = reparameterize(model)
    before.use_sampler("gather")
    after = copy.deepcopy(before)
    RTDETR_FAMILY.to_cpu_form(after, "fp32")
    with torch.no_grad():
        maps = before.double().encode(_images(WIDE))
        expected = before.decoder.select(maps)[0]
        found = after.double().decoder.select(after.encode(_images(WIDE)))[0]
    invalid = int((torch.from_numpy(valid[:, 0])[expected.tokens.long()] == 0).sum())
    assert (invalid > 0) == (shift > 0)
    assert torch.equal(expected.tokens, found.tokens) or shift > 0  # equal scores are in any order
    assert (expected.content.sum(dim=1) - found.content.sum(dim=1)).abs().max() < 1e-4
    assert (expected.reference.sum(dim=1) - found.reference.sum(dim=1)).abs().max() < 1e-1


def test_fewer_tokens_than_queries() -> None:
    before, after = _forms("r18", queries=300)
    logits, boxes = _differences(before, after, (64, 96))
    assert logits < 1e-4
    assert boxes < 1e-6


@pytest.mark.parametrize(("name", "joined"), [("r18", 2), ("r50", 0), ("r50-m", 2), ("hgnetv2-l", 0)])
def test_projections_go_into_fusion_where_that_takes_fewer_products(name: str, joined: int) -> None:
    _, after = _forms(name, layers=1)
    assert sum(isinstance(project, nn.Identity) for project in after.encoder.input_proj) == joined
    assert all(isinstance(block, UpsamplingFusion) for block in after.encoder.fpn_blocks)


def _count(model: RTDETR) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(_images((160, 160), 1))
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "saved"), [("r18", 0.045), ("r50", 0.018)])
def test_the_form_takes_fewer_products(name: str, saved: float) -> None:
    before, after = _forms(name, layers=3)
    assert _count(after) < (1 - saved) * _count(before)


@pytest.mark.parametrize("name", slow_except(VARIANTS, "r18", "hgnetv2-l"))
def test_every_scope_and_block_names_modules_of_the_form(name: str) -> None:
    sampler = "discrete" if VARIANTS[name].sampling == "discrete" else "gather"
    model = _forms(name, sampler, layers=1)[1]
    modules = [path for path, _ in model.named_modules() if path]
    scopes = RTDETR_FAMILY.fp32_scopes(model)
    blocks = (*RTDETR_FAMILY.quantization_blocks(model), *RTDETR_FAMILY.unquantized(model))
    globs = (*(scope.module for scope in scopes), *blocks)
    assert [glob for glob in globs if not any(match_module(glob, path) for path in modules)] == []
    for path, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not any(scope.covers(path, "Conv") for scope in scopes):
            assert any(match_module(glob, path) for glob in blocks), path


def test_int8_keeps_the_encoder() -> None:
    """Integers are concatenated at no cost; the decoder's table is the same in any precision."""
    before, after = _forms("r18", layers=1, precision="int8")
    assert not isinstance(after.encoder, CpuEncoder)
    assert isinstance(after.decoder, CpuDecoder)
    logits, boxes = _differences(before, after, (64, 96))
    assert logits < 1e-4
    assert boxes < 1e-6


def test_a_table_is_not_sampled_by_grid() -> None:
    model = _forms("r18", layers=1)[1]
    with pytest.raises(OptionError, match="a table of values is sampled by gather or discrete, not by grid"):
        model.use_sampler("grid")


def test_the_model_that_was_folded_stays_as_it_is() -> None:
    model = RTDETR(replace(VARIANTS["r18"], queries=20), 1).eval()
    names = [name for name, _ in model.named_parameters()]
    folded = reparameterize(model)
    RTDETR_FAMILY.to_cpu_form(folded, "fp32")
    assert [name for name, _ in model.named_parameters()] == names


def test_a_cascade_goes_on_with_the_same_queries() -> None:
    before, after = _forms("r18", layers=3, queries=30, cascade=(1, 12))
    logits, boxes = _differences(before, after, (64, 96))
    assert logits < 1e-4
    assert boxes < 1e-6
    with torch.no_grad():
        assert after(_images((64, 96))).boxes.shape == (2, 12, 4)
