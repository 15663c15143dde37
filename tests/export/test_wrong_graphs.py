"""Deliberately wrong graphs, each a mistake that an exporter could make: the parity report must refuse all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import slow_except, small_variant

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")

from torch import Tensor, nn  # noqa: E402

from rtdetr_deploy import ExportError  # noqa: E402
from rtdetr_deploy.artifacts.metadata import METADATA_KEY  # noqa: E402
from rtdetr_deploy.model import RTDETR, Checkpoint, load_checkpoint  # noqa: E402
from rtdetr_deploy.model import decoder as decoder_module  # noqa: E402
from rtdetr_deploy.model import hybrid_encoder as encoder_module  # noqa: E402
from rtdetr_deploy.model import query_selection as selection_module  # noqa: E402
from rtdetr_deploy.model.cpu_form import decoder as cpu_decoder_module  # noqa: E402
from rtdetr_deploy.model.layers import deformable_attention as attention_module  # noqa: E402
from rtdetr_deploy.model.layers.tokens import gather_rows  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402
from rtdetr_deploy.model.variants import HEADS, find_variant  # noqa: E402
from rtdetr_export import ExportOptions  # noqa: E402
from rtdetr_export import graph as graph_module  # noqa: E402
from rtdetr_export.pipeline import build_deployed, decide_sampler, describe_export, trace  # noqa: E402
from rtdetr_export.simplify import serialize, simplify  # noqa: E402
from rtdetr_export.verify import parity as verify  # noqa: E402
from rtdetr_export.verify.parity import ParityReport, verify_file  # noqa: E402
from rtdetr_export.verify.tolerances import FIXED  # noqa: E402

Mutate = Callable[[Any, pytest.MonkeyPatch], None]
HEIGHT, WIDTH = 128, 160


@dataclass(frozen=True)
class Subject:
    """A model and its file."""

    checkpoint: Checkpoint
    options: ExportOptions


SCORE_SCALE = 3e-5
"""Shrinks the selection's scores until rounding decides which token comes last."""


def _subject(folder: Path, name: str, variant: str | None, score_scale: float = 1.0) -> Subject:
    """Write and load random weights, of a small variant where none is named."""
    model = RTDETR(replace(find_variant(variant) if variant else small_variant(), classes=3))
    fill_randomly(model, seed=7)
    with torch.no_grad():
        model.decoder.enc_score_head.weight *= score_scale
    path = folder / f"{name}.pth"
    torch.save({"model": model.state_dict()}, path)
    options = ExportOptions(weights=path, variant=variant, layers=2, size=(HEIGHT, WIDTH))
    return Subject(load_checkpoint(path, variant=variant, layers=2), options)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """Return an ordinary model, one that jumps between cells, and one whose query selection is decided by rounding."""
    folder = tmp_path_factory.mktemp("subjects")
    return {
        "ordinary": _subject(folder, "ordinary", None),
        "discrete": _subject(folder, "discrete", "r18-dsp"),
        "restless": _subject(folder, "restless", None, SCORE_SCALE),
    }


def _verify(subject: Subject, mutate: Mutate | None, path: Path, *, simplified: bool = False) -> ParityReport:
    """Export without the gate, with the mistake `mutate`, and return the report."""
    sampler = decide_sampler(subject.checkpoint, None)
    info = describe_export(subject.checkpoint, subject.options, sampler)
    deployed = build_deployed(subject.checkpoint.model, sampler, subject.options)
    with pytest.MonkeyPatch.context() as patch:
        if mutate is not None:
            mutate(deployed.model, patch)
        _forget_constants()
        traced = trace(deployed, subject.options).content
    graph = simplify(traced) if simplified else onnx_ir.serde.deserialize_model(onnx.load_from_string(traced))
    content = serialize(graph, {METADATA_KEY: info.to_json()}, "0")
    _forget_constants()
    path.write_bytes(content)
    return verify_file(path, subject.checkpoint.model, info)


def _forget_constants() -> None:
    selection_module.make_anchors.cache_clear()
    encoder_module.position_embedding.cache_clear()


def _nearest_cell(model: Any, patch: pytest.MonkeyPatch) -> None:
    model.use_sampler("discrete")


def _aligned_corners(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Locations as if 0 and 1 were the centres of the outermost pixels."""
    for layer in model.decoder.decoder.layers:
        points = layer.cross_attn.points

        def shifted(cells: Any, inputs: Any, points: Any = points) -> Any:
            locations, weights, sizes = inputs
            axes = attention_module._per_point(sizes, points, HEADS, 0, 1, locations.device).sizes
            return locations + (0.5 - locations) / axes, weights, sizes

        layer.cross_attn.sampler.cells.register_forward_pre_hook(shifted)


def _swapped_axes(model: Any, patch: pytest.MonkeyPatch) -> None:
    for layer in model.decoder.decoder.layers:
        layer.cross_attn.coordinates.register_forward_hook(lambda module, inputs, locations: locations.flip(-2))


def _lost_bias(model: Any, patch: pytest.MonkeyPatch) -> None:
    """The folded bias of one convolution of many."""
    convs = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        bias = convs[len(convs) // 2].bias
        assert bias is not None
        bias.zero_()


def _wrong_epsilon(model: Any, patch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3


def _lost_branch(model: Any, patch: pytest.MonkeyPatch) -> None:
    """One RepVGG block without its 1x1 branch, which lies in the centre of the folded kernel."""
    block = model.encoder.pan_blocks[0].bottlenecks[1]
    with torch.no_grad():
        block[0].weight[:, :, 1, 1] *= 0.5


def _corner_anchors(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Anchors at the cells' corners instead of their centres."""
    make = selection_module.make_anchors.__wrapped__

    def moved(shapes: Any) -> Any:
        logits, valid = make(shapes)
        boxes = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
        sizes = np.concatenate([np.full((h * w, 2), [0.5 / w, 0.5 / h]) for h, w in shapes])
        boxes[:, :2] = np.where(valid > 0, boxes[:, :2] - sizes + 1e-4, boxes[:, :2])
        return np.where(valid > 0, np.log(boxes / (1 - boxes + 1e-12)), logits).astype(np.float32), valid

    moved.cache_clear = lambda: None  # type: ignore[attr-defined]
    patch.setattr(cpu_decoder_module, "make_anchors", moved)


def _equal_anchors(model: Any, patch: pytest.MonkeyPatch) -> None:
    """The same anchor size on every level."""
    make = selection_module.make_anchors.__wrapped__

    def equal(shapes: Any) -> Any:
        logits, valid = make(shapes)
        logits = logits.copy()
        logits[valid[:, 0] > 0, 2:] = np.log(0.05 / 0.95)
        return logits, valid

    equal.cache_clear = lambda: None  # type: ignore[attr-defined]
    patch.setattr(cpu_decoder_module, "make_anchors", equal)


def _y_major_embedding(model: Any, patch: pytest.MonkeyPatch) -> None:
    """The position embedding in the order of the tokens, which the released models don't have."""
    make = encoder_module.position_embedding.__wrapped__

    def ordered(height: int, width: int, channels: int) -> Any:
        table = make(height, width, channels).reshape(width, height, channels)
        return np.ascontiguousarray(table.transpose(1, 0, 2)).reshape(1, -1, channels)

    ordered.cache_clear = lambda: None  # type: ignore[attr-defined]
    patch.setattr(encoder_module, "position_embedding", ordered)


def _one_layer_less(model: Any, patch: pytest.MonkeyPatch) -> None:
    for modules in (model.decoder.decoder.layers, model.decoder.dec_score_head, model.decoder.dec_bbox_head):
        del modules[-1]


def _heads_of_the_layer_before(model: Any, patch: pytest.MonkeyPatch) -> None:
    model.decoder.dec_score_head[1] = model.decoder.dec_score_head[0]


def _masked_values(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Some tokens as zeros in cross-attention, as if its values were masked like the selection's."""

    def masked(module: Any, inputs: Any, values: Tensor) -> Any:
        keep = torch.ones(values.shape[1])
        keep[::7] = 0.0
        return values * keep[None, :, None]

    model.decoder.values.register_forward_hook(masked)


def _one_class_per_query(model: Any, patch: pytest.MonkeyPatch) -> None:
    """The best class of each query instead of the best query-class pairs."""

    def forward(self: Any, logits: Tensor, boxes: Tensor) -> Any:
        best, labels = logits.max(dim=-1)
        scores, rows = best.topk(min(self.max_detections, logits.shape[1]), dim=1)
        centre, size = gather_rows(boxes, rows).chunk(2, dim=-1)
        corners = torch.cat((centre - 0.5 * size, centre + 0.5 * size), dim=-1)
        return labels.gather(1, rows).to(torch.int32), corners.clamp(0.0, 1.0), scores.sigmoid()

    patch.setattr(graph_module.PostProcessor, "forward", forward)


def _centres_as_corners(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "cat", _cat_of_halves(torch.cat))


def _cat_of_halves(cat: Any) -> Any:
    def wrong(tensors: Any, dim: int = 0) -> Tensor:
        if len(tensors) == 2 and dim == -1 and tensors[0].shape[-1] == 2:
            return cat(((tensors[0] + tensors[1]) * 0.5, tensors[1]), dim)  # type: ignore[no-any-return]
        return cat(tensors, dim)  # type: ignore[no-any-return]

    return wrong


def _unclamped_logit(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decoder_module, "LOGIT_LIMIT", 2.0)


MISTAKES: dict[str, Mutate] = {
    function.__name__.strip("_"): function
    for function in (
        _nearest_cell,
        _aligned_corners,
        _swapped_axes,
        _lost_bias,
        _wrong_epsilon,
        _lost_branch,
        _corner_anchors,
        _equal_anchors,
        _y_major_embedding,
        _one_layer_less,
        _heads_of_the_layer_before,
        _masked_values,
        _one_class_per_query,
        _centres_as_corners,
        _unclamped_logit,
    )
}


QUICK = (
    "nearest_cell", "lost_bias", "wrong_epsilon", "corner_anchors", "y_major_embedding", "one_layer_less",
    "one_class_per_query", "unclamped_logit",
)  # fmt: skip
"""One of each kind: sampling, weights, norms, anchors, embedding, layers, postprocessing, limits."""


@pytest.mark.parametrize(
    ("name", "simplified"), [("ordinary", True), ("ordinary", False), ("discrete", False), ("restless", True)]
)
def test_the_faithful_graph_passes(name: str, simplified: bool, subjects: dict[str, Subject], tmp_path: Path) -> None:
    report = _verify(subjects[name], None, tmp_path / "right.onnx", simplified=simplified)
    assert report.passed, str(report)


@pytest.mark.parametrize("name", slow_except(["ordinary", "discrete", "restless"], "ordinary"))
def test_a_faithful_graph_beyond_the_fixed_tolerance_passes_by_own_rounding(
    name: str, subjects: dict[str, Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = np.array([FIXED.pixels, 1e-6, 1e-6, 1e-6], np.float32)
    monkeypatch.setattr(verify, "FIXED_ALLOWED", verify.Allowed(tiny, tiny, 0))
    report = _verify(subjects[name], None, tmp_path / "right.onnx")
    assert all("by the model's own rounding" in batch.explain() for batch in report.batches)
    assert report.passed, str(report)


@pytest.mark.parametrize("mistake", slow_except(MISTAKES, *QUICK))
def test_a_wrong_graph_is_refused(mistake: str, subjects: dict[str, Subject], tmp_path: Path) -> None:
    report = _verify(subjects["ordinary"], MISTAKES[mistake], tmp_path / "wrong.onnx")
    assert not report.passed, str(report)
    with pytest.raises(ExportError, match="disagrees with the torch model and was not written"):
        report.require("wrong.onnx")


@pytest.mark.parametrize(
    "mistake", slow_except(["swapped_axes", "lost_bias", "one_layer_less", "masked_values"], "lost_bias")
)
@pytest.mark.parametrize("name", slow_except(["discrete", "restless"], "restless"))
def test_wider_limits_do_not_let_a_wrong_graph_pass(
    mistake: str, name: str, subjects: dict[str, Subject], tmp_path: Path
) -> None:
    report = _verify(subjects[name], MISTAKES[mistake], tmp_path / "wrong.onnx")
    assert not report.passed, str(report)


def test_bilinear_sampling_of_a_model_with_discrete_sampling_is_refused(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    report = _verify(subjects["discrete"], lambda model, _: model.use_sampler("gather"), tmp_path / "wrong.onnx")
    assert not report.passed, str(report)
