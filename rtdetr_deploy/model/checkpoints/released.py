"""Checkpoints of the RT-DETR and RT-DETRv2 repositories, and all that keep their names (fine-tuned, rtdetr-train's).

    {"ema": {"module": state, ...}, "model": state, ...}     as released
    state, {"state_dict": ...}, {"any": {"key": ...}}        bare or wrapped, with any prefix (see `find_state`)

`class_names` (or `classes`, `names`) and `input_size` may lie beside the weights.
"""

from __future__ import annotations

import re

from rtdetr_deploy.model.checkpoints.find_state import find_state, has_detector
from rtdetr_deploy.model.checkpoints.read import Content
from rtdetr_deploy.model.checkpoints.source import Weights

_DECODER = re.compile(r"^(.*?)decoder\.decoder\.layers\.\d+\.")

# RT-DETR (v1) called some modules by position that RT-DETRv2 calls by name.
_RENAMED = (
    (re.compile(r"^(encoder\.input_proj\.\d+)\.0\."), r"\1.conv."),
    (re.compile(r"^(encoder\.input_proj\.\d+)\.1\."), r"\1.norm."),
    (re.compile(r"^decoder\.enc_output\.0\."), "decoder.enc_output.proj."),
    (re.compile(r"^decoder\.enc_output\.1\."), "decoder.enc_output.norm."),
)


def matches(content: Content) -> bool:
    """Tell whether `content` has the names that the released checkpoints give to a decoder."""
    return has_detector(content, _DECODER)


def convert(content: Content) -> Weights:
    """Return the weights, moving averages where there are some. Raises `CheckpointError`."""
    state = {_v2_name(key): value for key, value in find_state(content, _DECODER).items()}
    return Weights(state=state, class_names=content.class_names, input_size=content.input_size)


def _v2_name(key: str) -> str:
    for pattern, replacement in _RENAMED:
        key = pattern.sub(replacement, key)
    return key
