"""What a family says of its models: scopes and blocks that match, samplers, facts, the margin of the selection."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from rtdetr_deploy.model import RTDETR, VARIANTS  # noqa: E402
from rtdetr_deploy.model.family import RTDETR_FAMILY, family_of  # noqa: E402
from rtdetr_deploy.model.fp32_scope import Fp32Scope, match_module  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402
from rtdetr_deploy.model.variants import find_variant, variant_names  # noqa: E402


def _on_meta(name: str, layers: int | None = None) -> RTDETR:
    with torch.device("meta"):
        return RTDETR(find_variant(name), layers).eval()


@pytest.mark.parametrize("name", variant_names())
def test_every_scope_and_block_names_modules_of_every_variant(name: str) -> None:
    model = _on_meta(name)
    modules = [path for path, _ in model.named_modules() if path]
    for sampler in ("grid", *RTDETR_FAMILY.samplers(model)):
        RTDETR_FAMILY.use_sampler(model, sampler)
        modules = [path for path, _ in model.named_modules() if path]
        scopes = RTDETR_FAMILY.fp32_scopes(model)
        blocks, unquantized = RTDETR_FAMILY.quantization_blocks(model), RTDETR_FAMILY.unquantized(model)
        globs = (*(scope.module for scope in scopes), *blocks, *unquantized)
        assert [glob for glob in globs if not any(match_module(glob, path) for path in modules)] == []
        assert len({scope.name for scope in scopes}) == len(scopes)
        assert all(scope.reason for scope in scopes)


@pytest.mark.parametrize("name", ["r18", "hgnetv2-l"])
def test_blocks_hold_all_weights_that_may_go_to_int8(name: str) -> None:
    model = _on_meta(name)
    scopes = RTDETR_FAMILY.fp32_scopes(model)
    globs = (*RTDETR_FAMILY.quantization_blocks(model), *RTDETR_FAMILY.unquantized(model))
    for path, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not any(scope.covers(path, "Conv") for scope in scopes):
            assert any(match_module(glob, path) for glob in globs), path


def test_modules_for_precision_have_no_parameters() -> None:
    """Checkpoints don't know them."""
    decoder = _on_meta("r18").decoder
    attention = decoder.decoder.get_submodule("layers.0.cross_attn")
    for module in (
        decoder.query_selection,
        decoder.reference_box,
        decoder.refinement,
        attention.get_submodule("coordinates"),
        attention.get_submodule("sampler"),
    ):
        assert not module.state_dict()


@pytest.mark.parametrize(
    ("glob", "module", "found"),
    [
        ("encoder.*.*", "encoder.pan_blocks.1.conv1", "encoder.pan_blocks.1"),
        ("encoder.*.*", "encoder.encoder", None),
        ("encoder", "encoder", "encoder"),
        ("enc*", "encoder.encoder.0", "encoder"),
        ("decoder.*.cross_attn", "decoder.layers.0.cross_attn", None),
        ("decoder.layers.*.cross_attn", "decoder.layers.11.cross_attn.sampler", "decoder.layers.11.cross_attn"),
        ("decoder.enc_output", "decoder.enc_output2", None),
    ],
)
def test_a_star_stands_for_one_part_of_a_path(glob: str, module: str, found: str | None) -> None:
    assert match_module(glob, module) == found


def test_a_scope_covers_what_is_inside_and_its_operators_alone() -> None:
    scope = Fp32Scope("softmax", "decoder", "because", ("Softmax",))
    assert scope.covers("decoder.layers.0", "Softmax")
    assert not scope.covers("decoder.layers.0", "Add")
    assert not scope.covers("encoder", "Softmax")
    assert scope.inside("model").covers("model.decoder", "Softmax")
    assert not scope.inside("model").covers("decoder", "Softmax")


def test_models_know_their_family() -> None:
    assert family_of(_on_meta("r18")) is RTDETR_FAMILY
    with pytest.raises(TypeError, match="Linear is not a model of rtdetr"):
        family_of(nn.Linear(1, 1))


def test_samplers_are_those_of_the_training() -> None:
    assert RTDETR_FAMILY.samplers(_on_meta("r50")) == ("gather", "grid")
    assert RTDETR_FAMILY.samplers(_on_meta("r50-dsp")) == ("discrete",)


def test_facts_count_no_more_queries_than_tokens() -> None:
    model = _on_meta("r50-m", 2)
    small, large = (RTDETR_FAMILY.facts(model, side, side) for side in (64, 640))
    assert (small.variant, small.layers, small.queries, small.classes) == ("r50-m", 2, 64 + 16 + 4, 80)
    assert large.queries == 300


def test_the_margin_is_between_the_last_selected_and_the_first_rejected_token() -> None:
    model = RTDETR(replace(VARIANTS["r18"], queries=10), 1).eval()
    fill_randomly(model, seed=3)
    with torch.no_grad():
        maps = RTDETR_FAMILY.encode(model, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        selected = model.decoder(maps).selection.scores[0].amax(dim=-1)
        model.decoder.query_selection.queries = 11
        one_more = model.decoder(maps).selection.scores[0].amax(dim=-1)
        model.decoder.query_selection.queries = 10
        margin = RTDETR_FAMILY.selection_margin(model, maps)
        assert margin == pytest.approx(float(selected[-1] - one_more[-1]), abs=1e-6)
        assert margin > 0
        logits, boxes = RTDETR_FAMILY.decode(model, maps)
        assert (logits.shape, boxes.shape) == ((1, 10, 80), (1, 10, 4))
        model.decoder.query_selection.queries = 84
        assert RTDETR_FAMILY.selection_margin(model, maps) == float("inf")
