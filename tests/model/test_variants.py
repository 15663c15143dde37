"""The table of variants: published figures, shapes, and the order of the released parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from conftest import slow_except
from golden_files import VARIANTS as GOLDEN_VARIANTS
from golden_files import read_specs

torch = pytest.importorskip("torch")

from rtdetr_deploy.artifacts.input_size import STRIDES  # noqa: E402
from rtdetr_deploy.errors import OptionError  # noqa: E402
from rtdetr_deploy.evaluate.published import COMPLEXITY  # noqa: E402
from rtdetr_deploy.model import RTDETR, VARIANTS  # noqa: E402
from rtdetr_deploy.model.checkpoints.infer_variant import expected_shapes, infer_variant  # noqa: E402
from rtdetr_deploy.model.complexity import measure_complexity  # noqa: E402
from rtdetr_deploy.model.hybrid_encoder import Ccff  # noqa: E402
from rtdetr_deploy.model.variants import find_variant, variant_names  # noqa: E402


@pytest.mark.parametrize("name", slow_except(COMPLEXITY, "r18", "r50", "hgnetv2-l"))
def test_parameters_and_flops_are_within_3_percent_of_the_published_ones(name: str) -> None:
    counted = measure_complexity(VARIANTS[name])
    parameters, gflops = COMPLEXITY[name]
    assert counted.parameters == pytest.approx(parameters, rel=0.03)
    assert counted.gflops == pytest.approx(gflops, rel=0.03)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_read_off_its_own_shapes(name: str) -> None:
    assert infer_variant(expected_shapes(VARIANTS[name])) == VARIANTS[name]


@pytest.mark.parametrize("name", [*VARIANTS, "r18-dsp"])
def test_every_variant_has_the_shapes_that_its_modules_promise(name: str) -> None:
    variant = replace(find_variant(name), classes=7, queries=50)
    with torch.device("meta"):
        model = RTDETR(variant).eval()
        images = torch.empty(2, 3, 96, 160)
    with torch.no_grad():
        maps = model.backbone(images)
        fused = model.encoder(maps)
        output = model.decoder(fused)
    sizes = [(96 // stride, 160 // stride) for stride in STRIDES]
    channels = zip(variant.backbone.channels, sizes, strict=True)
    assert [tuple(x.shape) for x in maps] == [(2, count, *size) for count, size in channels]
    assert [tuple(x.shape) for x in fused] == [(2, variant.width, *size) for size in sizes]
    assert [tuple(x.shape) for x in output.logits] == [(2, 50, 7)] * variant.layers
    assert [tuple(x.shape) for x in output.boxes] == [(2, 50, 4)] * variant.layers


@pytest.mark.parametrize("golden", [name for name in GOLDEN_VARIANTS if name.startswith("v2_")])
def test_the_encoders_parameters_are_in_the_order_of_the_released_files(golden: str) -> None:
    ours = expected_shapes(find_variant(GOLDEN_VARIANTS[golden]))
    released = [key for key in read_specs()[golden]["shapes"] if key in ours]
    assert _encoder(ours) == _encoder(released)


def _encoder(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith("encoder.")]


def test_cross_scale_fusion_goes_down_and_up_again() -> None:
    fusion = Ccff(width=8, expansion=1.0).eval()
    maps = [torch.randn(1, 8, 64 // stride, 96 // stride, requires_grad=True) for stride in STRIDES]
    for fused in fusion.fuse_levels(*maps):
        gradients = torch.autograd.grad(fused.square().sum(), maps, retain_graph=True)
        assert all(bool(gradient.any()) for gradient in gradients)


def test_discrete_names_differ_in_sampling_alone() -> None:
    assert find_variant("r50-m-dsp").sampling == "discrete"
    assert find_variant("r50-m-dsp").layers == 3
    assert len(variant_names()) == 2 * len(VARIANTS)


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(OptionError, match="`variant` is 'r19', expected one of r18, r34"):
        find_variant("r19")


@pytest.mark.parametrize("layers", [0, 4])
def test_impossible_number_of_layers_is_refused(layers: int) -> None:
    with pytest.raises(OptionError, match=f"`layers` is {layers}, but r18 has 3 decoder layers: choose 1 to 3"):
        RTDETR(VARIANTS["r18"], layers)


def test_unknown_sampler_is_refused() -> None:
    with pytest.raises(OptionError, match="unknown sampler 'cubic'"):
        RTDETR(VARIANTS["r18"], 1).use_sampler("cubic")
