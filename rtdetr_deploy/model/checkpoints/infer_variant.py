"""Inferring an architecture from the shapes of its parameters.

What shapes can't tell: how many decoder layers run by default (taken from the released model that looks the same)
and discrete sampling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from rtdetr_deploy.artifacts.input_size import STRIDES
from rtdetr_deploy.model.rtdetr import RTDETR
from rtdetr_deploy.model.variants import (
    HEADS,
    VARIANTS,
    HgNetV2Config,
    HgStageConfig,
    ResNetVdConfig,
    Variant,
)

Shapes = Mapping[str, tuple[int, ...]]
LEVELS = len(STRIDES)
MAX_MODULES = 100
"""Layers or blocks in a row; released models have up to 23. A name with a huge index must not build a huge model."""


def infer_variant(shapes: Shapes, points_scale: Sequence[float] | None = None) -> Variant | None:
    """Return the variant with these parameters (RT-DETRv2's names), or None where the shapes fit no RT-DETR.

    `points_scale` is the buffer that RT-DETRv2 stores: 1 / points of its level for each sampling point; without it,
    every level is taken to have the same number of points.
    """
    if any(0 in shape for shape in shapes.values()):
        return None
    try:
        backbone = _infer_resnet(shapes) or _infer_hgnet(shapes)
        if backbone is None:
            return None
        width = shapes["encoder.input_proj.0.conv.weight"][0]
        hidden = shapes["encoder.fpn_blocks.0.conv1.conv.weight"][0]
        layers = _count(shapes, r"^decoder\.decoder\.layers\.(\d+)\.")
        samples = shapes["decoder.decoder.layers.0.cross_attn.sampling_offsets.weight"][0] // (2 * HEADS)
        points = _points(samples, points_scale)
        if points is None or layers == 0:
            return None
        found = Variant(
            name="custom",
            backbone=backbone,
            width=width,
            feedforward=shapes["encoder.encoder.0.layers.0.linear1.weight"][0],
            expansion=hidden / width,
            max_layers=layers,
            layers=layers,
            points=points,
            classes=shapes["decoder.enc_score_head.weight"][0],
            aifi_layers=_count(shapes, r"^encoder\.encoder\.0\.layers\.(\d+)\."),
        )
    except (KeyError, IndexError, ZeroDivisionError, OverflowError):
        return None
    return _name(found)


def _name(found: Variant) -> Variant:
    """Give `found` the name of the released model that it is, and that model's default number of layers."""
    for known in VARIANTS.values():
        if (known.backbone, known.width, known.expansion) == (found.backbone, found.width, found.expansion):
            layers = known.layers if known.max_layers == found.max_layers else found.max_layers
            return replace(found, name=known.name, layers=layers)
    return found


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that `pattern` captures in any name; 0 where it matches none.

    Raises `IndexError` beyond `MAX_MODULES`.
    """
    numbers = [match[1] for key in shapes if (match := re.match(pattern, key))]
    if any(len(number) > 9 or int(number) >= MAX_MODULES for number in numbers):
        raise IndexError(f"more than {MAX_MODULES}")
    return max(map(int, numbers), default=-1) + 1


def _infer_resnet(shapes: Shapes) -> ResNetVdConfig | None:
    stages = [_count(shapes, rf"^backbone\.res_layers\.{stage}\.blocks\.(\d+)\.") for stage in range(4)]
    if 0 in stages:
        return None
    bottleneck = "backbone.res_layers.0.blocks.0.branch2c.conv.weight" in shapes
    return ResNetVdConfig(blocks=(stages[0], stages[1], stages[2], stages[3]), bottleneck=bottleneck)


def _infer_hgnet(shapes: Shapes) -> HgNetV2Config | None:
    counts = [_count(shapes, rf"^backbone\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(4)]
    if 0 in counts:
        return None
    stages = []
    for stage, count in enumerate(counts):
        block = f"backbone.stages.{stage}.blocks.0."
        light = block + "layers.0.conv1.conv.weight" in shapes
        last = shapes[block + ("layers.0.conv2.conv.weight" if light else "layers.0.conv.weight")]
        out = shapes[block + "aggregation_excitation_conv.conv.weight"][0]
        stages.append(HgStageConfig(mid=last[0], out=out, blocks=count, light=light, kernel=last[-1]))
    return HgNetV2Config(
        stem_mid=shapes["backbone.stem.stem1.conv.weight"][0],
        stem_out=shapes["backbone.stem.stem4.conv.weight"][0],
        stages=(stages[0], stages[1], stages[2], stages[3]),
    )


def _points(samples: int, points_scale: Sequence[float] | None) -> tuple[int, int, int] | None:
    counts = []
    if points_scale is None:
        counts = [samples // LEVELS] * LEVELS
    else:
        position = 0
        while position < len(points_scale) and points_scale[position] > 0:
            counts.append(max(1, round(1.0 / points_scale[position])))
            position += counts[-1]
    if len(counts) != LEVELS or sum(counts) != samples or 0 in counts:
        return None
    return counts[0], counts[1], counts[2]


@lru_cache(maxsize=16)
def expected_shapes(variant: Variant) -> dict[str, tuple[int, ...]]:
    """Name and shape of every learned tensor of `variant` with all its layers; nothing is allocated."""
    with torch.device("meta"):
        state = RTDETR(variant, variant.max_layers).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


def nearest_variant(shapes: Shapes) -> Variant:
    """Return the released model that shares the most parameters (name and shape) with `shapes`, with their classes."""
    classes = next(iter(shapes.get("decoder.enc_score_head.bias", ())), 0)

    def shared(variant: Variant) -> int:
        return sum(shapes.get(key) == shape for key, shape in expected_shapes(variant).items())

    nearest = max(VARIANTS.values(), key=shared)
    return replace(nearest, classes=classes) if classes else nearest
