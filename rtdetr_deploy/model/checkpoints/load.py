"""Loading of trained weights: from a file of any known source to a model that runs.

Nothing in a file is ever executed: pickles are read with `weights_only=True`. The architecture is inferred from the
shapes (see `infer_variant`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rtdetr_deploy.artifacts.cascade import Cascade
from rtdetr_deploy.artifacts.class_names import check_class_names, default_class_names
from rtdetr_deploy.artifacts.weights_file import find_weights
from rtdetr_deploy.errors import CheckpointError, OptionError
from rtdetr_deploy.model.checkpoints import huggingface, released
from rtdetr_deploy.model.checkpoints.infer_variant import expected_shapes, nearest_variant
from rtdetr_deploy.model.checkpoints.read import read_content
from rtdetr_deploy.model.checkpoints.source import Source, State, Weights
from rtdetr_deploy.model.checkpoints.unknown import refuse
from rtdetr_deploy.model.family import RTDETR_FAMILY, Family
from rtdetr_deploy.model.rtdetr import RTDETR
from rtdetr_deploy.model.variants import DISCRETE_SUFFIX, VARIANTS, Variant, find_variant

SOURCES: dict[str, Source] = {
    "the RT-DETR repositories": released,
    "Hugging Face transformers": huggingface,
}
"""Tried in this order; the names are those that errors list."""

MAX_LISTED_KEYS = 3
_NOT_LEARNED = re.compile(r"(^decoder\.(anchors|valid_mask)|\.num_points_scale|\.num_batches_tracked)$")
_TRAINING_ONLY = "decoder.denoising_class_embed."

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model in eval mode and what is known about it.

    `class_names` has one name per class, in the order of the model's outputs. `digest` is the file's SHA-256 in hex,
    `input_size` the (height, width) in pixels that the model was trained at; None where the file doesn't tell.
    """

    model: RTDETR
    class_names: tuple[str, ...]
    digest: str
    input_size: tuple[int, int] | None = None

    @property
    def variant(self) -> Variant:
        """The architecture that was inferred."""
        return self.model.variant


def load_checkpoint(
    path: str | Path,
    *,
    variant: str | None = None,
    layers: int | None = None,
    queries: int | None = None,
    cascade: Cascade | None = None,
    class_names: Sequence[str] | None = None,
) -> Checkpoint:
    """Load a checkpoint of one of the `SOURCES` into a model that runs the first `layers` layers.

    `path` is a file of torch.save or safetensors, or a folder of Hugging Face's `save_pretrained`, whose `config.json`
    tells class names, queries and sampling. Exponential moving averages are preferred where the file has them.
    `variant` says what shapes can't tell: the number of layers that run by default, and discrete sampling (`r18-dsp`).
    `cascade` (K, N) lets only the N best queries go on after layer K. Class names come from `class_names`, else from
    the file, else they are COCO's for 80 classes or `class 0`, ...

    Raises `CheckpointError` when the file is not such a checkpoint, `OptionError` for arguments that don't fit it.
    """
    path = find_weights(path)
    wanted = None if variant is None else find_variant(variant)
    weights = read_weights(path)
    learned = {key: value.float() for key, value in weights.state.items() if not _NOT_LEARNED.search(key)}
    family, inferred = _infer(learned, _points_scale(weights.state), path)
    found = _as_stored(inferred, weights)
    architecture = _with_queries(found if wanted is None else _as_wanted(found, wanted, path), queries)
    model = family.build(architecture, layers)
    family.use_cascade(model, cascade)
    _check_finite(learned, path)
    _fill(model, learned)
    names = _decide_names(class_names, weights.class_names, architecture.classes, path)
    return Checkpoint(model.eval(), names, hashlib.sha256(path.read_bytes()).hexdigest(), weights.input_size)


def read_weights(path: Path) -> Weights:
    """Read the weights in a file by the first source that matches. Raises `CheckpointError`, e.g. where none does."""
    content = read_content(path)
    for source in SOURCES.values():
        if source.matches(content):
            return source.convert(content)
    raise refuse(content, SOURCES)


def _points_scale(state: State) -> list[float] | None:
    """Return the buffer that tells the sampling points of each level, where the file has one (RT-DETRv2)."""
    scales = (value for key, value in state.items() if key.endswith(".num_points_scale"))
    scale = next(scales, None)
    return None if scale is None else scale.flatten().tolist()


def _infer(learned: State, points_scale: Sequence[float] | None, path: Path) -> tuple[Family[RTDETR], Variant]:
    """Return family and variant with just these parameters; `CheckpointError` tells how the nearest one differs."""
    shapes = {key: tuple(value.shape) for key, value in learned.items()}
    family = RTDETR_FAMILY  # the only one whose checkpoints are read here
    found = family.infer_variant(shapes, points_scale)
    if found is not None and not _differences(shapes, expected_shapes(found)):
        return family, found
    nearest = found if found is not None and found.name in VARIANTS else nearest_variant(shapes)
    problems = _differences(shapes, expected_shapes(nearest)) or "its sampling points fit no three levels"
    raise CheckpointError(
        f"{path} is not an RT-DETR checkpoint that is known here; nearest is {nearest.name}: {problems}"
    )


def _as_stored(found: Variant, weights: Weights) -> Variant:
    """Return `found` with what shapes can't tell and the file does."""
    return replace(
        found,
        name=found.name + (DISCRETE_SUFFIX if weights.sampling == "discrete" else ""),
        sampling=weights.sampling or found.sampling,
        layers=found.max_layers if weights.runs_all_layers else found.layers,
        queries=weights.queries or found.queries,
    )


def _as_wanted(found: Variant, wanted: Variant, path: Path) -> Variant:
    """Return `found` with what shapes can't tell and `wanted` does; `CheckpointError` where `found` is another one."""
    if (wanted.backbone, wanted.width, wanted.expansion) != (found.backbone, found.width, found.expansion):
        raise CheckpointError(f"{path} holds {found.name}, not {wanted.name}; leave `variant` out")
    return replace(found, name=wanted.name, layers=min(wanted.layers, found.max_layers), sampling=wanted.sampling)


def _with_queries(found: Variant, queries: int | None) -> Variant:
    if queries is None:
        return found
    if not 1 <= queries <= found.queries:
        raise OptionError(f"`queries` is {queries}, but the model selects {found.queries}: choose 1 to {found.queries}")
    return replace(found, queries=queries)


def _differences(found: Shapes, expected: Mapping[str, tuple[int, ...]]) -> str:
    """Say in one line how two parameter lists differ; empty where they agree."""
    missing = [key for key in expected if key not in found and not key.startswith(_TRAINING_ONLY)]
    unexpected = [key for key in found if key not in expected]
    other = [
        f"{key} {found[key]} instead of {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    parts = []
    for title, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", other)):
        if keys:
            more = ", ..." if len(keys) > MAX_LISTED_KEYS else ""
            parts.append(f"{len(keys)} {title} ({', '.join(keys[:MAX_LISTED_KEYS])}{more})")
    return "; ".join(parts)


def _check_finite(learned: State, path: Path) -> None:
    for key, value in learned.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path} holds NaN or infinity in {key}: its training diverged; use an earlier one")


def _fill(model: RTDETR, learned: State) -> None:
    """Load with strict=True; what the file leaves out by design keeps the model's own values."""
    own = model.state_dict()
    model.load_state_dict({key: learned.get(key, own[key]) for key in own}, strict=True)


def _decide_names(given: Sequence[str] | None, stored: Any, count: int, path: Path) -> tuple[str, ...]:
    if given is not None:
        return check_class_names(given, count, "`class_names`")
    if stored is None:
        return default_class_names(count)
    names = _names_in_order(stored) if isinstance(stored, Mapping) else stored
    if isinstance(names, Sequence) and not isinstance(names, str):
        return check_class_names([str(name) for name in names], count, f"{path} (replace its names by `class_names`)")
    raise CheckpointError(f"{path} stores class names that are not a list: {type(stored).__name__}; give `class_names`")


def _names_in_order(stored: Mapping[Any, Any]) -> list[Any] | None:
    """Return the names of an index-to-name or name-to-index map, by index; None for any other map."""
    if all(isinstance(value, int) for value in stored.values()):
        return sorted(stored, key=lambda name: stored[name])
    try:
        return [stored[key] for key in sorted(stored, key=int)]
    except (TypeError, ValueError):
        return None
