"""The model against outputs of the released implementations (see tests/golden)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import shared_folder, slow_except
from golden.pack import round_array
from golden_files import GOLDEN, VARIANTS, WITHOUT_MODEL, read_golden, read_specs, write_weights

torch = pytest.importorskip("torch")

from rtdetr_deploy.model import RTDETR, load_checkpoint, reparameterize  # noqa: E402
from rtdetr_deploy.runtimes import open_runtime  # noqa: E402
from rtdetr_export import ExportOptions, export_onnx  # noqa: E402
from rtdetr_export.options import Sampler  # noqa: E402

BOX_TOLERANCE = 2e-5
LOGIT_TOLERANCE = 5e-4
SLICE_TOLERANCE = 1e-4


@pytest.fixture
def released(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Write the reference weights as a file in the released layout."""
    name: str = request.param
    return name, write_weights(name, tmp_path)


def test_every_reference_file_is_used() -> None:
    files = {file.stem for file in GOLDEN.glob("*.npz")}
    assert files - {"loss_v1"} == set(VARIANTS) | WITHOUT_MODEL == set(read_specs())
    assert sum(file.stat().st_size for file in GOLDEN.iterdir() if file.is_file()) < 3_000_000


def test_the_stored_references_are_the_full_ones_rounded() -> None:
    for file in shared_folder("golden").glob("*.npz"):
        stored = dict(np.load(GOLDEN / file.name))
        with np.load(file) as full:
            assert stored.keys() == set(full)
            for name in full:
                expected = full[name] if file.stem == "loss_v1" else round_array(name, full[name])
                assert np.array_equal(stored[name], expected), (file.name, name)
                assert stored[name].dtype == full[name].dtype


@pytest.mark.parametrize("released", slow_except(VARIANTS, "v1_r18", "v2_r18_dsp", "v2_hgnetv2_l"), indirect=True)
def test_every_layer_matches_the_released_model_before_and_after_reparameterization(
    released: tuple[str, Path],
) -> None:
    name, path = released
    _, reference, image = read_golden(name)
    default = load_checkpoint(path, variant=VARIANTS[name]).model
    assert default.layers == int(reference["default_layers"])
    built = default.variant.max_layers
    model = load_checkpoint(path, variant=VARIANTS[name], layers=built).model
    for candidate in (model, reparameterize(model)):
        _check_maps(candidate, reference, image)
        with torch.no_grad():
            output = candidate.forward_layers(torch.from_numpy(image))
        assert sorted(output.selection.tokens[0].tolist()) == reference["selected"].tolist()
        compared = 0
        for layer in range(1, built + 1):
            if f"logits_l{layer}" in reference:
                logits, boxes = output.logits[layer - 1][0].numpy(), output.boxes[layer - 1][0].numpy()
                _check_outputs(logits, boxes, reference, layer)
                compared += 1
        assert compared >= 2


@pytest.mark.parametrize("released", slow_except(["v1_r50", "v2_r50_m", "v2_hgnetv2_l"], "v1_r50"), indirect=True)
def test_truncated_model_matches_and_drops_unused_layers(released: tuple[str, Path]) -> None:
    name, path = released
    _, reference, image = read_golden(name)
    model = load_checkpoint(path, layers=4).model
    keys = model.state_dict().keys()
    assert not [key for key in keys if key.startswith(("decoder.decoder.layers.4", "decoder.dec_score_head.4"))]
    with torch.no_grad():
        logits, boxes = model(torch.from_numpy(image))
    _check_outputs(logits[0].numpy(), boxes[0].numpy(), reference, 4)


@pytest.mark.parametrize(
    ("released", "sampler"),
    [
        ("v1_r18_480x800", "gather"),
        pytest.param("v1_r18", "grid", marks=pytest.mark.slow),
        pytest.param("v2_r18_dsp", None, marks=pytest.mark.slow),
        pytest.param("v2_hgnetv2_l", "gather", marks=pytest.mark.slow),
    ],
    indirect=["released"],
)
def test_exported_onnx_matches_the_released_model(released: tuple[str, Path], sampler: Sampler | None) -> None:
    name, path = released
    spec, reference, image = read_golden(name)
    result = export_onnx(
        ExportOptions(
            weights=path,
            size=(spec["height"], spec["width"]),
            variant=VARIANTS[name],
            sampler=sampler,
            raw_output=True,
        )
    )
    outputs = open_runtime(result.path).run({"images": image})
    _check_outputs(outputs["logits"][0], outputs["boxes"][0], reference, result.info.layers)


def _check_maps(model: RTDETR, reference: dict[str, NDArray[Any]], image: NDArray[np.float32]) -> None:
    with torch.no_grad():
        backbone = model.backbone(torch.from_numpy(image))
        encoder = model.encoder(backbone)
    for kind, maps in (("backbone", backbone), ("encoder", encoder)):
        for level, features in enumerate(maps):
            array = features.numpy()
            height, width = array.shape[2:]
            part = array[0, :16, :: height // 8, :: width // 8]
            expected = reference[f"{kind}{level}_slice"]
            assert part.shape == expected.shape
            scale = float(reference[f"{kind}{level}_stats"][2])
            assert np.abs(part - expected).max() <= SLICE_TOLERANCE * scale
            stats = np.array([array.mean(), array.std(), np.abs(array).max()])
            assert np.abs(stats - reference[f"{kind}{level}_stats"]).max() <= SLICE_TOLERANCE * scale


def _check_outputs(logits: NDArray[Any], boxes: NDArray[Any], reference: dict[str, NDArray[Any]], layer: int) -> None:
    """Match the reference's queries to ours and compare; each of ours may serve once."""
    expected_logits, expected_boxes = reference[f"logits_l{layer}"], reference[f"boxes_l{layer}"]
    distance = np.abs(boxes[None] - expected_boxes[:, None]).max(-1)
    distance = distance + np.abs(logits[None] - expected_logits[:, None]).max(-1)
    match = distance.argmin(axis=1)
    assert len(set(match.tolist())) == len(match)
    assert np.abs(boxes[match] - expected_boxes).max() <= BOX_TOLERANCE
    assert np.abs(logits[match] - expected_logits).max() <= LOGIT_TOLERANCE
