"""A second, independent witness of the model: Hugging Face's implementation with the same weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from rtdetr_deploy.errors import CheckpointError, OptionError  # noqa: E402
from rtdetr_deploy.model import load_checkpoint  # noqa: E402
from rtdetr_deploy.model.checkpoints.huggingface import from_huggingface  # noqa: E402
from rtdetr_deploy.model.checkpoints.infer_variant import infer_variant  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402
from rtdetr_deploy.model.rtdetr import RTDETR  # noqa: E402
from rtdetr_export.verify.parity import MIN_MARGIN, to_input  # noqa: E402
from rtdetr_export.verify.synthetic_images import structured_image  # noqa: E402

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
    variant = infer_variant(shapes, scales[0].flatten().tolist() if scales else None)
    assert variant is not None
    model = RTDETR(replace(variant, queries=queries), variant.max_layers).eval()
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
            margin = model.decoder.selection_margin(model.encode(image))
        if margin > MIN_MARGIN:
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


NAMES = {0: "red", 1: "white", 2: "platelet"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder of save_pretrained (RT-DETRv2, discrete sampling, 60 queries, three classes), and the model."""
    folder = tmp_path_factory.mktemp("hub")
    options = {**R18, "id2label": NAMES, "num_queries": 60, "decoder_method": "discrete"}
    del options["num_labels"]
    model = transformers.RTDetrV2ForObjectDetection(transformers.RTDetrV2Config(**options)).eval()
    fill_randomly(model, seed=5)
    model.save_pretrained(folder)
    return folder, model


def _with_config(saved: tuple[Path, Any], folder: Path, **changes: Any) -> Path:
    """Return a copy of the folder whose config.json says something else."""
    (folder / "model.safetensors").symlink_to(saved[0] / "model.safetensors")
    content = {**json.loads((saved[0] / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_saved_folder_and_its_file_open_with_names_queries_and_sampling(name: str, saved: tuple[Path, Any]) -> None:
    folder, theirs = saved
    loaded = load_checkpoint(folder / name)
    assert loaded.class_names == tuple(NAMES.values())
    assert (loaded.variant.name, loaded.variant.queries) == ("r18-dsp", 60)
    image = torch.from_numpy(to_input(structured_image(SIZE, SIZE, 3)[None]))
    with torch.no_grad():
        expected, found = theirs(pixel_values=image), loaded.model(image)
    _compare(found.logits[0], found.boxes[0], expected.logits[0], expected.pred_boxes[0])


def test_the_benchmark_opens_a_saved_folder_too(saved: tuple[Path, Any]) -> None:
    from rtdetr_bench.accuracy import open_any
    from rtdetr_bench.options import RunOptions

    with open_any(saved[0], RunOptions(size=(SIZE, SIZE))) as predictor:
        assert predictor.class_names == tuple(NAMES.values())


def test_a_plain_state_dict_opens_with_and_without_its_config(saved: tuple[Path, Any], tmp_path: Path) -> None:
    state = saved[1].state_dict()
    torch.save(state, tmp_path / "model.pth")
    assert load_checkpoint(tmp_path / "model.pth").class_names == ("class 0", "class 1", "class 2")
    torch.save({"state_dict": {f"net.{key}": value for key, value in state.items()}}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((saved[0] / "config.json").read_text())
    loaded = load_checkpoint(tmp_path)
    assert (loaded.class_names, loaded.variant.queries) == (tuple(NAMES.values()), 60)


def test_the_input_size_is_that_of_the_image_processor(saved: tuple[Path, Any], tmp_path: Path) -> None:
    folder = _with_config(saved, tmp_path)
    processor = {"size": {"height": 480, "width": 800}, "do_normalize": False, "rescale_factor": 0.00392156862745098}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    assert load_checkpoint(folder).input_size == (480, 800)
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, "do_normalize": True}))
    with pytest.raises(
        CheckpointError, match="preprocessor_config.json says do_normalize True, which can't be computed"
    ):
        load_checkpoint(folder)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"encoder_activation_function": "relu"}, "encoder_activation_function 'relu'.*; expected gelu"),
    "model": ({"model_type": "d_fine"}, "says model_type 'd_fine', which can't be computed here; expected rt_detr or"),
    "norm": ({"normalize_before": True}, "normalize_before True"),
    "backbone": ({"backbone_config": {"hidden_act": "gelu"}}, "hidden_act 'gelu'.*expected relu"),
    "queries": ({"num_queries": "many"}, "num_queries 'many'; expected a whole number"),
    "names": ({"id2label": {"0": "a"}}, "names 1 class.*the model has 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_config_asks_for_and_is_not_computed_is_refused_by_name(
    case: str, saved: tuple[Path, Any], tmp_path: Path
) -> None:
    changes, message = REFUSED[case]
    with pytest.raises((CheckpointError, OptionError), match=message):
        load_checkpoint(_with_config(saved, tmp_path, **changes))


def test_a_folder_without_weights_gets_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder without model.safetensors or pytorch_model.bin"):
        load_checkpoint(tmp_path)


def test_a_damaged_config_is_named(saved: tuple[Path, Any], tmp_path: Path) -> None:
    folder = _with_config(saved, tmp_path)
    for text in ("{", "[]", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config.json(, which describes the weights| does not describe)"):
            load_checkpoint(folder)


def test_missing_projections_are_named(saved: tuple[Path, Any], tmp_path: Path) -> None:
    state = saved[1].state_dict()
    del state["model.decoder.layers.0.self_attn.k_proj.weight"]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(decoder.decoder.layers.0.self_attn.in_proj_weight\)"):
        load_checkpoint(tmp_path / "model.pth")
