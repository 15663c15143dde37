"""Checkpoints of Hugging Face `transformers` (RTDetr and RTDetrV2): their parameter names, and their `config.json`.

Both generations of names are known: those of the files on the hub (`fc1`, `out_proj`, `encoder.encoder`) and those that
transformers 5 uses in memory (`mlp.fc1`, `o_proj`, `encoder.aifi`). Needs torch alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_deploy.errors import CheckpointError
from rtdetr_deploy.model.checkpoints.find_state import find_state, has_detector
from rtdetr_deploy.model.checkpoints.read import Content, as_input_size
from rtdetr_deploy.model.checkpoints.source import State, Weights
from rtdetr_deploy.model.variants import Sampling

_DECODER = re.compile(r"^(.*?)model\.decoder\.layers\.\d+\.")

# Applied in this order to every name; what a later rule sees is what the earlier ones left.
_RULES: tuple[tuple[str, str], ...] = (
    (r"^model\.", ""),
    (r"^backbone\.model\.embedder\.embedder\.0\.", "backbone.conv1.conv1_1."),
    (r"^backbone\.model\.embedder\.embedder\.1\.", "backbone.conv1.conv1_2."),
    (r"^backbone\.model\.embedder\.embedder\.2\.", "backbone.conv1.conv1_3."),
    (r"^backbone\.model\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"backbone.res_layers.\1.blocks.\2."),
    (r"\.shortcut\.1\.", ".short.conv."),
    (r"\.shortcut\.", ".short."),
    (r"(\.blocks\.\d+)\.layer\.0\.", r"\1.branch2a."),
    (r"(\.blocks\.\d+)\.layer\.1\.", r"\1.branch2b."),
    (r"(\.blocks\.\d+)\.layer\.2\.", r"\1.branch2c."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".norm."),
    (r"^encoder_input_proj\.(\d+)\.0\.", r"encoder.input_proj.\1.conv."),
    (r"^encoder_input_proj\.(\d+)\.1\.", r"encoder.input_proj.\1.norm."),
    (r"^decoder_input_proj\.(\d+)\.0\.", r"decoder.input_proj.\1.conv."),
    (r"^decoder_input_proj\.(\d+)\.1\.", r"decoder.input_proj.\1.norm."),
    (r"^encoder\.aifi\.", "encoder.encoder."),
    (r"^decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.", r"decoder.decoder.layers.\1.norm2."),
    (r"^decoder\.layers\.(\d+)\.final_layer_norm\.", r"decoder.decoder.layers.\1.norm3."),
    (r"^decoder\.layers\.(\d+)\.encoder_attn\.", r"decoder.decoder.layers.\1.cross_attn."),
    (r"^decoder\.layers\.", "decoder.decoder.layers."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.(?:mlp\.)?fc1\.", ".linear1."),
    (r"\.(?:mlp\.)?fc2\.", ".linear2."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"\.n_points_scale$", ".num_points_scale"),
    (r"^(?:decoder\.)?class_embed\.", "decoder.dec_score_head."),
    (r"^(?:decoder\.)?bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^enc_output\.0\.", "decoder.enc_output.proj."),
    (r"^enc_output\.1\.", "decoder.enc_output.norm."),
    (r"^(enc_score_head|enc_bbox_head|denoising_class_embed)\.", r"decoder.\1."),
    (r"^(anchors|valid_mask)$", r"decoder.\1"),
)
_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in _RULES)
_PROJECTION = re.compile(r"^(.*\.self_attn)\.([qkv])_proj\.(weight|bias)$")

# What config.json may say, and the only values that the model here computes (those of every released model).
_COMPUTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("rt_detr", "rt_detr_v2"),
    "activation_function": ("silu", "swish"),
    "encoder_activation_function": ("gelu",),
    "decoder_activation_function": ("relu",),
    "normalize_before": (False,),
    "encode_proj_layers": ([2],),
    "feat_strides": ([8, 16, 32],),
    "positional_encoding_temperature": (10000,),
    "encoder_attention_heads": (8,),
    "decoder_attention_heads": (8,),
    "learn_initial_query": (False,),
    "decoder_offset_scale": (0.5,),
    "decoder_method": ("default", "discrete"),
    "layer_norm_eps": (1e-5,),
    "batch_norm_eps": (1e-5,),
}
_COMPUTED_BACKBONE: dict[str, tuple[Any, ...]] = {
    "model_type": ("rt_detr_resnet",),
    "hidden_act": ("relu",),
    "downsample_in_first_stage": (False,),
    "downsample_in_bottleneck": (False,),
}
_COMPUTED_IMAGES: dict[str, tuple[Any, ...]] = {
    "do_normalize": (False,),
    "do_rescale": (True,),
    "rescale_factor": (1 / 255,),
    "do_pad": (False,),
}


@dataclass(frozen=True)
class Config:
    """What `config.json` and `preprocessor_config.json` tell: class names by index, queries, sampling, input size."""

    class_names: Mapping[str, str] | None
    queries: int
    sampling: Sampling
    input_size: tuple[int, int] | None


def matches(content: Content) -> bool:
    """Tell whether `content` has the names that transformers gives to a detector's weights."""
    return has_detector(content, _DECODER)


def convert(content: Content) -> Weights:
    """Return the weights, and what the file and the `config.json` beside it tell. Raises `CheckpointError`."""
    state = find_state(content, _DECODER)
    config = read_config(content.path.parent)
    weights = Weights(state=from_huggingface(state), class_names=content.class_names, input_size=content.input_size)
    if config is None:
        return weights
    return replace(
        weights,
        class_names=config.class_names if weights.class_names is None else weights.class_names,
        input_size=weights.input_size or config.input_size,
        queries=config.queries,
        sampling=config.sampling,
        runs_all_layers=True,
    )


def read_config(folder: Path) -> Config | None:
    """Read the `config.json` in `folder`; None where there is none.

    Raises `CheckpointError` when a file can't be read, or asks for what the model here does not compute.
    """
    path, images = folder / "config.json", folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    config = _read_json(path)
    _check(config, _COMPUTED, path)
    backbone = config.get("backbone_config")
    _check(backbone if isinstance(backbone, Mapping) else {}, _COMPUTED_BACKBONE, path)
    queries = config.get("num_queries", 300)
    if type(queries) is not int or queries < 1:
        raise CheckpointError(f"{path} says num_queries {queries!r}; expected a whole number from 1 up")
    names = config.get("id2label")
    size = None
    if images.is_file():
        processor = _read_json(images)
        _check(processor, _COMPUTED_IMAGES, images)
        stored = processor.get("size")
        size = as_input_size([stored.get("height"), stored.get("width")]) if isinstance(stored, Mapping) else None
    sampling: Sampling = "discrete" if config.get("decoder_method") == "discrete" else "bilinear"
    return Config(names if isinstance(names, Mapping) else None, queries, sampling, size)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"can't read {path}, which describes the weights beside it: {error}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} does not describe a model; expected the config.json of save_pretrained")
    return content


def _check(config: Mapping[str, Any], computed: Mapping[str, tuple[Any, ...]], path: Path) -> None:
    for key, values in computed.items():
        value = config.get(key)
        same = any(
            abs(value - known) < 1e-9 if type(value) is type(known) is float else value == known for known in values
        )
        if value is not None and not same:
            allowed = " or ".join(str(known) for known in values)
            raise CheckpointError(f"{path} says {key} {value!r}, which can't be computed here; expected {allowed}")


def from_huggingface(state: Mapping[str, Tensor]) -> State:
    """Return `state`, a `RTDetrForObjectDetection` or `RTDetrV2ForObjectDetection` state dict, under released names.

    The separate projections of query, key and value are stacked into one `in_proj`. Names that the rules don't know are
    kept, so that a loader names them as unexpected.
    """
    result: State = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _COMPILED:
            name = pattern.sub(replacement, name)
        part = _PROJECTION.match(name)
        if part:
            projections.setdefault(f"{part[1]}.in_proj_{part[3]}", {})[part[2]] = value
        else:
            result[name] = value
    for name, parts in projections.items():
        if len(parts) == len("qkv") and len({part.shape for part in parts.values()}) == 1:
            result[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
        else:
            result |= {f"{name}.{part}": value for part, value in parts.items()}
    return result
