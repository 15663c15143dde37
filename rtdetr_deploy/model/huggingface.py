"""Hugging Face `transformers` names of RTDetr and RTDetrV2 parameters, turned into those of the released checkpoints.

Both generations of names are known: those of the files on the hub (`fc1`, `out_proj`, `encoder.encoder`) and those that
transformers 5 uses in memory (`mlp.fc1`, `o_proj`, `encoder.aifi`). Needs torch alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

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
)
_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in _RULES)
_PROJECTION = re.compile(r"^(.*\.self_attn)\.([qkv])_proj\.(weight|bias)$")


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state`, a `RTDetrForObjectDetection` or `RTDetrV2ForObjectDetection` state dict, under released names.

    The separate projections of query, key and value are stacked into one `in_proj`. Names that the rules don't know are
    kept, so that a loader names them as unexpected.
    """
    result: dict[str, Tensor] = {}
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
        result[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return result
