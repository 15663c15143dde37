"""A second, independent witness of the model: Hugging Face's implementation with the same weights."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from rtdetr_deploy.model.describe import describe  # noqa: E402
from rtdetr_deploy.model.huggingface import from_huggingface  # noqa: E402
from rtdetr_deploy.model.rtdetr import RTDETR  # noqa: E402
from rtdetr_export.probes import structured_image  # noqa: E402
from rtdetr_export.verify import to_input  # noqa: E402

TOLERANCE = 1e-4


def _backbone(layer_type: str) -> dict[str, Any]:
    depths = [2, 2, 2, 2] if layer_type == "basic" else [3, 4, 6, 3]
    widths = [64, 128, 256, 512] if layer_type == "basic" else [256, 512, 1024, 2048]
    config = transformers.RTDetrResNetConfig(
        depths=depths, hidden_sizes=widths, layer_type=layer_type, out_features=["stage2", "stage3", "stage4"]
    )
    return {"backbone_config": config, "encoder_in_channels": widths[1:]}


R18 = {"decoder_layers": 3, "num_queries": 80, "hidden_expansion": 0.5, "num_labels": 80} | _backbone("basic")
CASES = {
    "v1-r18": ("RTDetr", R18),
    "v2-r18": ("RTDetrV2", R18),
    "v2-r18-one-point": ("RTDetrV2", {**R18, "decoder_n_points": 1, "num_labels": 5}),
    "v1-r50-two-layers": ("RTDetr", {"decoder_layers": 2, "num_labels": 7} | _backbone("bottleneck")),
    "v1-wide-encoder": (
        "RTDetr",
        {**R18, "encoder_hidden_dim": 384, "encoder_ffn_dim": 2048, "hidden_expansion": 1.0, "num_queries": 60, "decoder_in_channels": [384] * 3},
    ),
}


def _randomize(model: Any) -> None:
    """Give norms and biases values that matter; a fresh model's are zeros and ones."""
    generator = torch.Generator().manual_seed(3)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            value.data.uniform_(0.8, 1.25, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            value.data.normal_(0.0, 0.1, generator=generator)
        elif value.ndim == 1 and name.endswith("weight"):
            value.data.uniform_(0.8, 1.2, generator=generator)
        elif name.endswith(("class_embed.0.weight", "enc_score_head.weight")):
            value.data.normal_(0.0, 0.2, generator=generator)


def _old_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return `state` with the names of the files on the hub, written before transformers 5."""
    renamed = {}
    for key, value in state.items():
        name = key.replace(".mlp.fc", ".fc").replace(".self_attn.o_proj.", ".self_attn.out_proj.")
        renamed[re.sub(r"^model\.encoder\.aifi\.", "model.encoder.encoder.", name)] = value
    return renamed


@pytest.mark.parametrize("case", CASES)
def test_outputs_match_transformers_within_1e_4(case: str) -> None:
    family, options = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    theirs = getattr(transformers, f"{family}ForObjectDetection")(config).eval()
    _randomize(theirs)
    state = from_huggingface(theirs.state_dict())
    assert state.keys() == from_huggingface(_old_names(theirs.state_dict())).keys()

    ours = _build(state, config.num_queries)
    images = torch.from_numpy(to_input(np.stack([structured_image(128, 160, seed) for seed in (1, 2)])))
    with torch.no_grad():
        expected = theirs(pixel_values=images)
        found = ours.forward_layers(images)
    for layer in range(options["decoder_layers"]):
        for row in range(2):
            _compare(
                found.logits[layer][row],
                found.boxes[layer][row],
                expected.intermediate_logits[row, layer],
                expected.intermediate_reference_points[row, layer],
            )


def _build(state: dict[str, Any], queries: int) -> RTDETR:
    from dataclasses import replace

    scales = [state.pop(key) for key in list(state) if key.endswith("num_points_scale")]
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    variant = describe(shapes, scales[0].flatten().tolist() if scales else None)
    assert variant is not None
    model = RTDETR(replace(variant, queries=queries), variant.built_layers).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model


def _compare(logits: Any, boxes: Any, expected_logits: Any, expected_boxes: Any) -> None:
    distance = (logits[:, None] - expected_logits[None]).abs().amax(-1)
    distance += (boxes[:, None] - expected_boxes[None]).abs().amax(-1)
    match = distance.argmin(dim=1)
    assert len(set(match.tolist())) == len(match)
    assert (logits - expected_logits[match]).abs().max() <= TOLERANCE
    assert (boxes - expected_boxes[match]).abs().max() <= TOLERANCE
