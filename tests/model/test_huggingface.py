"""A second, independent witness of the model: Hugging Face's implementation with the same weights."""

from __future__ import annotations

import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from rtdetr_deploy.model.describe import describe  # noqa: E402
from rtdetr_deploy.model.huggingface import from_huggingface  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402
from rtdetr_deploy.model.rtdetr import RTDETR  # noqa: E402
from rtdetr_export.probes import structured_image  # noqa: E402
from rtdetr_export.verify import MIN_GAP, selection_gap, to_input  # noqa: E402

TOLERANCE = 1e-4
SIZE = 128
"""Square: for other shapes transformers orders the position embedding in another way than the released models do."""


def _backbone(layer_type: str) -> dict[str, Any]:
    depths = [2, 2, 2, 2] if layer_type == "basic" else [3, 4, 6, 3]
    widths = [64, 128, 256, 512] if layer_type == "basic" else [256, 512, 1024, 2048]
    config = transformers.RTDetrResNetConfig(
        depths=depths, hidden_sizes=widths, layer_type=layer_type, out_features=["stage2", "stage3", "stage4"]
    )
    return {"backbone_config": config, "encoder_in_channels": widths[1:]}


R18 = {"decoder_layers": 3, "hidden_expansion": 0.5, "num_labels": 80} | _backbone("basic")
CASES = {
    "v1-r18": ("RTDetr", R18),
    "v2-r18": ("RTDetrV2", R18),
    "v2-r18-one-point": ("RTDetrV2", {**R18, "decoder_n_points": 1, "num_labels": 5}),
    "v1-r50-two-layers": ("RTDetr", {"decoder_layers": 2, "num_labels": 7} | _backbone("bottleneck")),
    "v1-wide-encoder": (
        "RTDetr",
        {
            **R18,
            "encoder_hidden_dim": 384,
            "encoder_ffn_dim": 2048,
            "hidden_expansion": 1.0,
            "num_queries": 60,
            "decoder_in_channels": [384] * 3,
        },
    ),
}


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
    fill_randomly(theirs, seed=3)
    state = from_huggingface(theirs.state_dict())
    assert state.keys() == from_huggingface(_old_names(theirs.state_dict())).keys()

    ours = _build(state, config.num_queries)
    images = _decided_images(ours, count=2)
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


def _decided_images(model: RTDETR, count: int) -> Any:
    """Return images on which rounding can't swap the last selected token for the first rejected one."""
    chosen = []
    for seed in range(100):
        image = torch.from_numpy(to_input(structured_image(SIZE, SIZE, seed)[None]))
        with torch.no_grad():
            gap = selection_gap(model, model.encoder(model.backbone(image)))
        if gap > MIN_GAP:
            chosen.append(image)
        if len(chosen) == count:
            return torch.cat(chosen)
    raise AssertionError("no image with a clear selection")


def _compare(logits: Any, boxes: Any, expected_logits: Any, expected_boxes: Any) -> None:
    distance = (logits[:, None] - expected_logits[None]).abs().amax(-1)
    distance += (boxes[:, None] - expected_boxes[None]).abs().amax(-1)
    match = distance.argmin(dim=1)
    assert len(set(match.tolist())) == len(match)
    assert (logits - expected_logits[match]).abs().max() <= TOLERANCE
    assert (boxes - expected_boxes[match]).abs().max() <= TOLERANCE
