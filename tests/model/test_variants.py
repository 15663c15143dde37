"""The table of variants against the published figures."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rtdetr_deploy.errors import OptionError  # noqa: E402
from rtdetr_deploy.model import RTDETR, VARIANTS  # noqa: E402
from rtdetr_deploy.model.checkpoints.infer_variant import expected_shapes, infer_variant  # noqa: E402
from rtdetr_deploy.model.complexity import PUBLISHED, measure_complexity  # noqa: E402
from rtdetr_deploy.model.variants import find_variant, variant_names  # noqa: E402


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_flops_are_within_3_percent_of_the_published_ones(name: str) -> None:
    counted = measure_complexity(VARIANTS[name])
    parameters, gflops = PUBLISHED[name]
    assert counted.parameters == pytest.approx(parameters, rel=0.03)
    assert counted.gflops == pytest.approx(gflops, rel=0.03)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_read_off_its_own_shapes(name: str) -> None:
    assert infer_variant(expected_shapes(VARIANTS[name])) == VARIANTS[name]


def test_discrete_names_differ_in_sampling_alone() -> None:
    assert find_variant("r50-m-dsp").sampling == "discrete"
    assert find_variant("r50-m-dsp").layers == 3
    assert len(variant_names()) == 2 * len(VARIANTS)


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(OptionError, match="unknown variant 'r19'; choose from r18, r34"):
        find_variant("r19")


@pytest.mark.parametrize("layers", [0, 4])
def test_impossible_number_of_layers_is_refused(layers: int) -> None:
    with pytest.raises(OptionError, match="r18 has 3: choose 1 to 3"):
        RTDETR(VARIANTS["r18"], layers)


def test_unknown_sampler_is_refused() -> None:
    with pytest.raises(OptionError, match="unknown sampler 'cubic'"):
        RTDETR(VARIANTS["r18"], 1).use_sampler("cubic")
