"""Loading of trained weights: released files, fine-tuned ones, bare state dicts, safetensors.

A released file is `{"ema": {"module": state}, "model": state, ...}`. Nothing in a file is ever executed: pickles are
read with `weights_only=True`. The architecture is read off the shapes (see `infer_variant`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rtdetr_deploy.artifacts.class_names import check_class_names, default_class_names
from rtdetr_deploy.artifacts.weights_file import find_weights
from rtdetr_deploy.errors import CheckpointError, OptionError
from rtdetr_deploy.model.checkpoints.huggingface import Config, from_huggingface, is_huggingface, read_config
from rtdetr_deploy.model.checkpoints.infer_variant import expected_shapes, infer_variant, nearest_variant
from rtdetr_deploy.model.checkpoints.read import Stored, read_content
from rtdetr_deploy.model.checkpoints.state_dicts import State, find_state
from rtdetr_deploy.model.rtdetr import RTDETR
from rtdetr_deploy.model.variants import DISCRETE_SUFFIX, VARIANTS, Variant, find_variant

# RT-DETR (v1) called some modules by position that RT-DETRv2 calls by name.
_RENAMED = (
    (re.compile(r"^(encoder\.input_proj\.\d+)\.0\."), r"\1.conv."),
    (re.compile(r"^(encoder\.input_proj\.\d+)\.1\."), r"\1.norm."),
    (re.compile(r"^decoder\.enc_output\.0\."), "decoder.enc_output.proj."),
    (re.compile(r"^decoder\.enc_output\.1\."), "decoder.enc_output.norm."),
)
_DERIVED = re.compile(r"(^decoder\.(anchors|valid_mask)|\.num_points_scale|\.num_batches_tracked)$")
_TRAINING_ONLY = "decoder.denoising_class_embed."
_NAMED_KEYS = 3


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model in eval mode and what is known about it.

    `digest` is the file's SHA-256 in hex, `input_size` the (height, width) that it was trained at, if stored.
    """

    model: RTDETR
    class_names: tuple[str, ...]
    digest: str
    input_size: tuple[int, int] | None = None

    @property
    def variant(self) -> Variant:
        """The architecture that was read off the file."""
        return self.model.variant


def load_checkpoint(
    path: str | Path,
    *,
    variant: str | None = None,
    layers: int | None = None,
    queries: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Checkpoint:
    """Load a `.pth`, `.pt` or `.safetensors` file into a model that runs the first `layers` layers.

    `path` may be a folder of Hugging Face's `save_pretrained` too; for its files, `config.json` beside them tells class
    names, queries and sampling. Exponential moving averages are preferred where the file has them. `variant` says what
    shapes can't tell: the number of layers that run by default, and discrete sampling (`r18-dsp`). Class names come
    from `class_names`, else from the file, else they are COCO's for 80 classes or `class 0`, `class 1`, ...

    Raises `CheckpointError` when the file is not such a checkpoint, `OptionError` for arguments that don't fit it.
    """
    path = find_weights(path)
    content, stored = read_content(path)
    state = find_state(content, path)
    config = None
    if is_huggingface(state):
        config = read_config(path.parent)
        state, stored = from_huggingface(state), _joined(stored, config)
    tensors = _canonical(state)
    architecture = _decide_variant(tensors, variant, config, path)
    if queries is not None:
        if not 1 <= queries <= architecture.queries:
            raise OptionError(f"{queries} queries asked for; choose 1 to {architecture.queries}")
        architecture = replace(architecture, queries=queries)
    model = RTDETR(architecture, layers)
    _check_finite(tensors, path)
    _fill(model, tensors)
    names = _decide_names(class_names, stored.class_names, architecture.classes, path)
    return Checkpoint(model.eval(), names, hashlib.sha256(path.read_bytes()).hexdigest(), stored.input_size)


def _joined(stored: Stored, config: Config | None) -> Stored:
    """Return what is stored in the file, completed by what Hugging Face stores beside it."""
    if config is None:
        return stored
    names = config.class_names if stored.class_names is None else stored.class_names
    return Stored(names, stored.input_size or config.input_size)


def _canonical(state: State) -> State:
    """Use RT-DETRv2's names, keep learned tensors only, as float32 (half-precision files too)."""
    result = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        if not _DERIVED.search(name):
            result[name] = value.float()
        elif name.endswith(".num_points_scale"):
            result[name] = value
    return result


def _decide_variant(tensors: State, asked: str | None, config: Config | None, path: Path) -> Variant:
    scales = {key: value for key, value in tensors.items() if key.endswith(".num_points_scale")}
    for key in scales:
        del tensors[key]
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    wanted = find_variant(asked) if asked is not None else None
    points_scale = next(iter(scales.values()), None)
    found = infer_variant(shapes, points_scale.flatten().tolist() if points_scale is not None else None)
    if found is None or _compare(shapes, expected_shapes(found)):
        nearest = found if found is not None and found.name in VARIANTS else nearest_variant(shapes)
        problems = _compare(shapes, expected_shapes(nearest)) or "its sampling points fit no three levels"
        raise CheckpointError(
            f"{path} is not an RT-DETR checkpoint that is known here; nearest is {nearest.name}: {problems}"
        )
    if config is not None:
        found = _as_configured(found, config)
    if wanted is None:
        return found
    if (wanted.backbone, wanted.width, wanted.expansion) != (found.backbone, found.width, found.expansion):
        raise CheckpointError(f"{path} holds {found.name}, not {wanted.name}; leave --variant out")
    return replace(found, name=wanted.name, layers=min(wanted.layers, found.max_layers), sampling=wanted.sampling)


def _as_configured(found: Variant, config: Config) -> Variant:
    """Return `found` with what shapes can't tell; Hugging Face's models run all of their layers."""
    discrete = Variant.sampling if not config.discrete else "discrete"
    name = found.name + (DISCRETE_SUFFIX if config.discrete else "")
    return replace(found, name=name, sampling=discrete, layers=found.max_layers, queries=config.queries)


def _compare(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
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
            more = ", ..." if len(keys) > _NAMED_KEYS else ""
            parts.append(f"{len(keys)} {title} ({', '.join(keys[:_NAMED_KEYS])}{more})")
    return "; ".join(parts)


def _check_finite(tensors: State, path: Path) -> None:
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path} holds NaN or infinity in {key}: its training diverged; use an earlier one")


def _fill(model: RTDETR, tensors: State) -> None:
    """Load with strict=True; what the file leaves out by design keeps the model's own values."""
    own = model.state_dict()
    state = {key: tensors.get(key, own[key]) for key in own}
    model.load_state_dict(state, strict=True)


def _names_in_order(stored: Mapping[Any, Any]) -> list[Any] | None:
    """Return the names of an index-to-name or name-to-index map, by index; None for any other map."""
    if all(isinstance(value, int) for value in stored.values()):
        return sorted(stored, key=lambda name: stored[name])
    try:
        return [stored[key] for key in sorted(stored, key=int)]
    except (TypeError, ValueError):
        return None


def _decide_names(given: Sequence[str] | None, stored: Any, count: int, path: Path) -> tuple[str, ...]:
    if given is not None:
        return check_class_names(given, count, "the list of classes")
    if stored is None:
        return default_class_names(count)
    if isinstance(stored, Mapping):
        stored = _names_in_order(stored)
    if isinstance(stored, Sequence) and not isinstance(stored, str):
        return check_class_names([str(name) for name in stored], count, f"{path} (override with --classes)")
    raise CheckpointError(f"{path} stores class names that are not a list: {type(stored).__name__}; pass --classes")
