"""From nodes of the graph back to modules: every scope and block on every variant, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import Tensor, nn  # noqa: E402

from rtdetr_deploy import ArtifactInfo, ExportError, OptionError  # noqa: E402
from rtdetr_deploy.artifacts.decoding import RTDETR_DECODING, ScoreDecoding  # noqa: E402
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec  # noqa: E402
from rtdetr_deploy.model import RTDETR, VARIANTS  # noqa: E402
from rtdetr_deploy.model import family as family_module  # noqa: E402
from rtdetr_deploy.model.family import RTDETR_FAMILY, Family, ModelFacts  # noqa: E402
from rtdetr_deploy.model.fp32_scope import Fp32Scope  # noqa: E402
from rtdetr_deploy.model.rtdetr import RawOutput  # noqa: E402
from rtdetr_deploy.model.variants import find_variant  # noqa: E402
from rtdetr_export import ExportOptions  # noqa: E402
from rtdetr_export.graph import DeployedModel  # noqa: E402
from rtdetr_export.module_map import record_modules  # noqa: E402
from rtdetr_export.pipeline import Traced, build_deployed, trace  # noqa: E402
from rtdetr_export.precision.activations import evenly_spaced  # noqa: E402
from rtdetr_export.precision.fp16 import to_fp16  # noqa: E402
from rtdetr_export.precision.int8 import find_quantizable  # noqa: E402
from rtdetr_export.precision.placement import modules_of, place  # noqa: E402
from rtdetr_export.simplify import serialize, simplify  # noqa: E402
from rtdetr_export.verify.parity import verify_file  # noqa: E402

MOVERS = {"Reshape", "Transpose", "Slice", "Gather", "Unsqueeze", "Squeeze", "Concat", "Split", "Expand", "Shape"}


def _traced(model: nn.Module, sampler: str, **changes: Any) -> tuple[Any, DeployedModel, Traced]:
    options = ExportOptions(Path("x.pth"), size=(64, 64), **changes)
    deployed = build_deployed(model, sampler, options)
    traced = trace(deployed, options)
    return simplify(traced.content), deployed, traced


@pytest.fixture(scope="module")
def small() -> tuple[Any, DeployedModel, Traced]:
    return _traced(RTDETR(VARIANTS["r18"], 1), "gather", raw_input=True)


@pytest.mark.parametrize(
    ("name", "sampler", "additions"),
    [("r18", "gather", 8), ("r18", "grid", 8), ("r18-dsp", "discrete", 8), ("hgnetv2-l", "gather", 0)],
)
def test_every_scope_and_block_has_nodes_with_every_backbone_and_sampler(
    name: str, sampler: str, additions: int
) -> None:
    """`place` refuses a scope or block without nodes, `find_quantizable` a node without block.

    `additions` are those right behind a convolution: one per block of ResNet, none in HGNetv2 (ReLU is between).
    Untrained weights have biases of zero, whose convolutions the simplification replaces by nodes with other names. All
    variants: see `test_every_variant`.
    """
    graph, deployed, traced = _traced(RTDETR(find_variant(name), 1), sampler)
    placement = place(graph, deployed, traced.modules)
    assert {scope.name for scope in placement.kept.values()} == {scope.name for scope in deployed.fp32_scopes}
    nodes = find_quantizable(graph, placement)
    assert len(nodes) > 60
    assert all(node.block in dict(deployed.model.named_modules()) for node in nodes)
    assert sum(node.add is not None for node in nodes) == additions
    known = modules_of(graph, traced.modules)
    assert {node.op_type for node in graph.graph if str(node.name) not in known} <= MOVERS


def test_nodes_lead_to_the_modules_that_compute_them(small: tuple[Any, DeployedModel, Traced]) -> None:
    _, deployed, traced = small
    modules = traced.modules
    assert {
        "/preprocess/Div": "preprocess",
        "/model/backbone/conv1/conv1_2/conv1_2.0/Conv": "model.backbone.conv1.conv1_2.0",
        "/model/encoder/pan_blocks.0/bottlenecks/bottlenecks.1/bottlenecks.1.0/Conv": (
            "model.encoder.pan_blocks.0.bottlenecks.1.0"
        ),
        "/model/decoder/query_selection/enc_output/norm/LayerNormalization": "model.decoder.enc_output.norm",
        "/model/decoder/query_pos_head_1/layers.0/MatMul": "model.decoder.query_pos_head.layers.0",
        "/model/decoder/layers.0/cross_attn/sampler/cells/Floor": (
            "model.decoder.decoder.layers.0.cross_attn.sampler.cells"
        ),
        "/postprocess/TopK": "postprocess",
    }.items() <= {name: modules.module_of(name) for name in _names(traced) | {_SECOND_CALL}}.items()
    known = {path for path, _ in deployed.named_modules()}
    assert {modules.module_of(name) for name in _names(traced) if name.startswith("/")} <= known
    assert modules.module_of("node_Reshape_20") is None
    modules.require(_names(traced))
    with pytest.raises(ExportError, match="called a node /model/unheard_of/Add, which belongs to no module"):
        modules.require(["/model/unheard_of/Add"])


_SECOND_CALL = "/model/decoder/query_pos_head_1/layers.0/MatMul"


def _names(traced: Traced) -> set[str]:
    return {node.name for node in onnx.load_from_string(traced.content).graph.node}


class _Twins(nn.Module):
    """Two lists whose members have the same names where they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.ModuleDict({"layers": nn.ModuleList([nn.ReLU()])}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for side in (self.left, self.right):
            x = side["layers"][0](x)  # type: ignore[index]
        return x


def test_modules_that_names_cannot_tell_apart_are_refused() -> None:
    twins = _Twins()
    with (
        pytest.raises(ExportError, match=r"modules left\.layers\.0 and right\.layers\.0 are both called /layers\.0"),
        record_modules(twins),
    ):
        twins(torch.zeros(1))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in twins.modules())


def _changed(**changes: Callable[[Any], Any]) -> Family[Any]:
    return replace(RTDETR_FAMILY, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fp32_scopes": lambda _: (Fp32Scope("nothing", "decoder.renamed", "a reason"),)},
            r"no node is in the FP32 scope 'nothing' \(model\.decoder\.renamed\)",
        ),
        (
            {"fp32_scopes": lambda _: (Fp32Scope("operators", "decoder", "a reason", ("Einsum",)),)},
            "no node is in the FP32 scope 'operators'",
        ),
        ({"quantization_blocks": lambda _: ("neck.*",)}, r"no node is in a quantization block model\.neck\.\*"),
        ({"unquantized": lambda _: ("neck",)}, r"no node is in model\.neck, which stays out of INT8"),
    ],
)
def test_what_matches_nothing_is_refused(
    changes: dict[str, Callable[[Any], Any]],
    message: str,
    small: tuple[Any, DeployedModel, Traced],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, deployed, traced = small
    monkeypatch.setattr(family_module, "FAMILIES", (_changed(**changes),))
    with pytest.raises(ExportError, match=message):
        place(graph, deployed, traced.modules)


def test_weights_without_a_block_are_refused(
    small: tuple[Any, DeployedModel, Traced], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, deployed, traced = small
    monkeypatch.setattr(family_module, "FAMILIES", (_changed(quantization_blocks=lambda _: ("backbone.*",)),))
    with pytest.raises(ExportError, match=r"\S+ is in no quantization block of the model's family"):
        find_quantizable(graph, place(graph, deployed, traced.modules))


def test_scopes_can_be_left_out_by_name(small: tuple[Any, DeployedModel, Traced]) -> None:
    graph, deployed, traced = small
    placement = place(graph, deployed, traced.modules)
    names = {scope.name for scope in placement.kept.values()}
    assert {scope.name for scope in placement.only("postprocess").kept.values()} == {"postprocess"}
    assert {scope.name for scope in placement.without("class heads").kept.values()} == names - {"class heads"}
    assert placement.only("postprocess").blocks == placement.blocks


class _Centres(nn.Module):
    """A detector of another family: as many queries as cells of 32 x 32 pixels, no selection."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 32, 32)
        self.scores = nn.Linear(8, 2)
        self.boxes = nn.Linear(8, 4)

    def decode(self, maps: list[Tensor]) -> RawOutput:
        tokens = maps[0].reshape(-1, 8, 4).transpose(1, 2)
        return RawOutput(self.scores(tokens), self.boxes(tokens).sigmoid())

    def forward(self, images: Tensor) -> RawOutput:
        return self.decode([self.body(images)])


CENTRES: Family[_Centres] = Family(
    name="centres",
    model_type=_Centres,
    build=lambda *_: _Centres(),
    infer_variant=lambda *_: None,
    fold=lambda model: model,
    samplers=lambda _: ("none",),
    use_sampler=lambda *_: None,
    use_cascade=lambda *_: None,
    fp32_scopes=lambda _: (Fp32Scope("boxes", "boxes", "coordinates"),),
    bf16_scopes=lambda _: (Fp32Scope("boxes", "boxes", "coordinates"),),
    quantization_blocks=lambda _: ("body", "scores"),
    unquantized=lambda _: (),
    fuse_for_gpu=lambda _: None,
    to_cpu_form=lambda *_: None,
    to_fp16_form=lambda _: None,
    encode=lambda model, images: [model.body(images)],
    decode=_Centres.decode,
    selection_margin=lambda *_: float("inf"),
    facts=lambda *_: ModelFacts("centres", 1, 4, 2, "none"),
    preprocess=PreprocessSpec.rtdetr,
    decoding=RTDETR_DECODING,
)


def test_another_family_is_one_family_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, compared with torch, placed and reduced, without a word about it in the exporter."""
    monkeypatch.setattr(family_module, "FAMILIES", (CENTRES, RTDETR_FAMILY))
    torch.manual_seed(0)
    model = _Centres().eval()
    graph, deployed, traced = _traced(model, "none", max_detections=5)
    info = ArtifactInfo(
        class_names=("a", "b"),
        height=64,
        width=64,
        batch=1,
        variant="centres",
        layers=1,
        queries=4,
        max_detections=5,
        precision="fp32",
        sampler="none",
        outputs="detections",
        raw_input=False,
        opset=17,
        source="x.pth",
        source_digest="0",
        verified=True,
        version="0",
    )
    path = tmp_path / "centres.onnx"
    path.write_bytes(serialize(graph, {"rtdetr_deploy": info.to_json()}, "0"))
    assert verify_file(path, model, info).passed
    placement = place(graph, deployed, traced.modules)
    assert [node.block for node in find_quantizable(graph, placement)] == ["body", "scores"]
    report = to_fp16(graph, keep=placement.kept)
    assert "/model/boxes/MatMul" in report.fp32_nodes
    assert {"/model/body/Conv", "/model/scores/MatMul"} <= set(report.fp16_nodes)


def test_scores_that_the_file_can_not_decode_are_left_to_the_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    softmax = replace(CENTRES, decoding=ScoreDecoding("softmax"))
    monkeypatch.setattr(family_module, "FAMILIES", (softmax,))
    with pytest.raises(
        OptionError, match=r"scores of centres models \(softmax\) are decoded .*; add `raw_output=True`"
    ):
        build_deployed(_Centres(), "none", ExportOptions(Path("x.pth")))
    assert build_deployed(_Centres(), "none", ExportOptions(Path("x.pth"), raw_output=True)).postprocess is None


def test_evenly_spaced_items_keep_their_order() -> None:
    assert evenly_spaced(list(range(10)), 4) == [0, 2, 5, 7]
    assert evenly_spaced([3, 1, 2], 8) == [3, 1, 2]
    assert evenly_spaced([], 8) == []
