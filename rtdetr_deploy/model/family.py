"""Detector families: all that export, verification, precision and metadata ask about a model.

They know no attribute of a model. Another family (another decoder, a model of another library) is added by writing one
`Family` and putting it into `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from rtdetr_deploy.artifacts.cascade import Cascade
from rtdetr_deploy.artifacts.decoding import RTDETR_DECODING, ScoreDecoding
from rtdetr_deploy.artifacts.input_size import count_tokens
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec
from rtdetr_deploy.model.checkpoints.infer_variant import infer_variant
from rtdetr_deploy.model.cpu_form import CpuDecoder, to_cpu_form
from rtdetr_deploy.model.fp32_scope import Fp32Scope
from rtdetr_deploy.model.layers.deformable_attention import CellSampler
from rtdetr_deploy.model.masked_cascade import cut_margin, decode_by_masks
from rtdetr_deploy.model.reparameterize import reparameterize
from rtdetr_deploy.model.rtdetr import RTDETR, RawOutput
from rtdetr_deploy.model.variants import HgNetV2Config, Variant

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class ModelFacts:
    """What a file's metadata say about the model, and how many classes it has.

    `variant` is its name, `layers` those of the decoder, `sampler` what it samples by.
    `queries` are those of one input size, at most as many as an image has tokens. `cascade` (K, N) where only the N
    best of them go on after layer K.
    """

    variant: str
    layers: int
    queries: int
    classes: int
    sampler: str
    cascade: Cascade | None = None

    @property
    def output_queries(self) -> int:
        """Queries of the last layer."""
        return self.queries if self.cascade is None else self.cascade[1]


@dataclass(frozen=True)
class Family(Generic[Model]):
    """Functions and data of one family. Models are in eval mode; images are (B, 3, H, W) float32 RGB in [0, 1].

    Building
        `model_type`; `infer_variant(shapes, points_scale)`: the variant of a checkpoint's parameters; `build(variant,
        layers)`: a model with untrained weights, `layers` None is as many as the variant runs; `fold(model)`: a copy
        for inference, that computes the same with fewer operations.
    Samplers
        `samplers(model)`: the names of those that compute what the model was trained with, first the one that exports
        use; `use_sampler(model, name)`. A family without a choice has one name.
    Cascade
        `use_cascade(model, (K, N))`: only the N best queries go on after layer K, None: all do. Raises `OptionError`
        where the model has no such layer, or fewer queries.
    Precision
        `fp32_scopes(model)`: see `Fp32Scope`; `bf16_scopes(model)`: those where CPUs compute the rest in BF16.
        `quantization_blocks(model)`: globs of the parts that go to INT8 as a whole; the first that matches a module
        names its block. `unquantized(model)`: globs of what stays out of INT8, besides the scopes. Of all four, each
        must match something in the model. Three functions change a folded model in place into another form of the same
        computation: `fuse_for_gpu(model)` as GPUs fuse it, for files for TensorRT and those with FP16 in them,
        `to_cpu_form(model, precision)` as CPUs run it fastest, for all others, and `to_fp16_form(model)` as FP16 needs
        it.
    Verification
        `encode(model, images)` gives feature maps and `decode(model, maps)` the raw output: the model in two parts, of
        which the second is run on slightly disturbed maps too, of one image; what files are compared with: a cascade is
        computed in another way than in files. `selection_margin(model, maps)`: by how much (logits) the last selected
        query of one image beats the first rejected one, in a cascade too; infinite where nothing is selected.
    Metadata
        `facts(model, height, width)` for an input of that size; `preprocess(size, dtype)`: what such an input wants of
        images; `decoding` of the raw scores. `name` is stored too.
    """

    name: str
    model_type: type[Model]
    build: Callable[[Variant, int | None], Model]
    infer_variant: Callable[..., Variant | None]
    fold: Callable[[Model], Model]
    samplers: Callable[[Model], tuple[str, ...]]
    use_sampler: Callable[[Model, str], None]
    use_cascade: Callable[[Model, Cascade | None], None]
    fp32_scopes: Callable[[Model], tuple[Fp32Scope, ...]]
    bf16_scopes: Callable[[Model], tuple[Fp32Scope, ...]]
    quantization_blocks: Callable[[Model], tuple[str, ...]]
    unquantized: Callable[[Model], tuple[str, ...]]
    fuse_for_gpu: Callable[[Model], None]
    to_cpu_form: Callable[[Model, str], None]
    to_fp16_form: Callable[[Model], None]
    encode: Callable[[Model, Tensor], list[Tensor]]
    decode: Callable[[Model, list[Tensor]], RawOutput]
    selection_margin: Callable[[Model, list[Tensor]], float]
    facts: Callable[[Model, int, int], ModelFacts]
    preprocess: Callable[[tuple[int, int], str], PreprocessSpec]
    decoding: ScoreDecoding


def family_of(model: nn.Module) -> Family[Any]:
    """Return the family that `model` belongs to. Raises `TypeError` for a model of none."""
    for family in FAMILIES:
        if isinstance(model, family.model_type):
            return family
    raise TypeError(f"{type(model).__name__} is not a model of {', '.join(family.name for family in FAMILIES)}")


def _samplers(model: RTDETR) -> tuple[str, ...]:
    return ("discrete",) if model.variant.sampling == "discrete" else ("gather", "grid")


def _decode(model: RTDETR, maps: list[Tensor]) -> RawOutput:
    if model.cascade is not None:
        return RawOutput(*decode_by_masks(model.decoder, maps))
    output = model.decoder(maps)
    return RawOutput(output.logits[-1], output.boxes[-1])


def _selection_margin(model: RTDETR, maps: list[Tensor]) -> float:
    selected = model.decoder.selection_margin(maps)
    return selected if model.cascade is None else min(selected, cut_margin(model.decoder, maps))


def _facts(model: RTDETR, height: int, width: int) -> ModelFacts:
    variant = model.variant
    queries = min(variant.queries, count_tokens(height, width))
    cascade = None if model.cascade is None else (model.cascade[0], min(model.cascade[1], queries))
    return ModelFacts(variant.name, model.layers, queries, variant.classes, model.sampler, cascade)


def _has_hgnet(model: RTDETR) -> bool:
    return isinstance(model.variant.backbone, HgNetV2Config)


_WEIGHTS = "it looks for small differences between pixels: large weights cancel, and what FP16 rounds off them remains"
_ATTENTION = "decoder.decoder.layers.*.cross_attn"
_SCOPES = (
    Fp32Scope(
        "normalization", "*", "sums of squares lose the small differences that they are about", ("LayerNormalization",)
    ),
    Fp32Scope("selection's projection", "decoder.enc_output", "queries begin as what it computes"),
    Fp32Scope("selection's scores", "decoder.enc_score_head", "rounded scores select other queries"),
    Fp32Scope("query selection", "decoder.query_selection", "rounded scores tie, and ties select other queries"),
    Fp32Scope("selection's boxes", "decoder.enc_bbox_head.layers.2", "corrections are added to the logit of an anchor"),
    Fp32Scope(
        "box heads", "decoder.dec_bbox_head.*.layers.2", "corrections are added to the logit of the reference box"
    ),
    Fp32Scope("box refinement", "decoder.refinement", "logits of boxes: 1 - 1e-5 is 1 in FP16, and its logit infinite"),
    Fp32Scope(
        "reference boxes", "decoder.reference_box", "boxes in shares of the image: FP16 has steps of 0.3 in 640 pixels"
    ),
    Fp32Scope(
        "sampling offsets",
        f"{_ATTENTION}.sampling_offsets",
        "distances in pixels: FP16 moves them by up to 0.05 cells of 80",
    ),
    Fp32Scope(
        "sampling locations",
        f"{_ATTENTION}.coordinates",
        "pixel coordinates: FP16 moves them by up to 0.05 cells of 80",
    ),
    Fp32Scope("class heads", "decoder.dec_score_head", "confidence that users compare with a threshold"),
)
_CASCADE = Fp32Scope("cascade", "decoder.cascade", "rounded scores tie, and ties let other queries go on")


def _fp32_scopes(model: RTDETR) -> tuple[Fp32Scope, ...]:
    first = "backbone.stem.stem1" if _has_hgnet(model) else "backbone.conv1.conv1_1"
    sampler = (
        Fp32Scope("grid sampling", f"{_ATTENTION}.sampler", "GridSample reads values and pixel coordinates in one type")
        if model.sampler == "grid"
        else Fp32Scope(
            "sampled cells",
            f"{_ATTENTION}.sampler.cells",
            "indices of cells and shares of a cell: what is left of a coordinate after its whole part is taken off",
        )
    )
    cascade = () if model.cascade is None else (_CASCADE,)
    return (Fp32Scope("first convolution", first, _WEIGHTS), *_SCOPES, *cascade, sampler)


_NOT_FOR_BF16 = ("normalization", "selection's projection")
"""Neither moved a detection when it was tried: what they read is rounded already."""
_SELECTED = Fp32Scope("selected content", "decoder.enc_output.norm", "what queries begin as, and what is scored")


def _bf16_scopes(model: RTDETR) -> tuple[Fp32Scope, ...]:
    return (*(scope for scope in _fp32_scopes(model) if scope.name not in _NOT_FOR_BF16), _SELECTED)


_UNQUANTIZED = ("decoder.enc_bbox_head", "decoder.dec_bbox_head")


def _unquantized(model: RTDETR) -> tuple[str, ...]:
    projection = () if isinstance(model.decoder, CpuDecoder) else ("decoder.input_proj",)
    preselection = () if model.decoder.preselection is None else ("decoder.preselection",)
    return (*projection, *_UNQUANTIZED, *preselection)


def _fuse_for_gpu(model: RTDETR) -> None:
    for module in model.modules():
        if isinstance(module, CellSampler):
            module.fuses = True


def _quantization_blocks(model: RTDETR) -> tuple[str, ...]:
    resnet = ("backbone.conv1", "backbone.res_layers.*.blocks.*")
    hgnet = ("backbone.stem", "backbone.stages.*.downsample", "backbone.stages.*.blocks.*")
    return (
        *(hgnet if _has_hgnet(model) else resnet),
        "encoder.*.*",
        *(("decoder.values",) if isinstance(model.decoder, CpuDecoder) else ()),
        "decoder.decoder.layers.*",
        "decoder.query_pos_head",
    )


RTDETR_FAMILY: Family[RTDETR] = Family(
    name="rtdetr",
    model_type=RTDETR,
    build=RTDETR,
    infer_variant=infer_variant,
    fold=reparameterize,
    samplers=_samplers,
    use_sampler=RTDETR.use_sampler,
    use_cascade=RTDETR.use_cascade,
    fp32_scopes=_fp32_scopes,
    bf16_scopes=_bf16_scopes,
    quantization_blocks=_quantization_blocks,
    unquantized=_unquantized,
    fuse_for_gpu=_fuse_for_gpu,
    to_cpu_form=to_cpu_form,
    to_fp16_form=lambda model: model.decoder.preselect(),
    encode=RTDETR.encode,
    decode=_decode,
    selection_margin=_selection_margin,
    facts=_facts,
    preprocess=PreprocessSpec.rtdetr,
    decoding=RTDETR_DECODING,
)
FAMILIES: tuple[Family[Any], ...] = (RTDETR_FAMILY,)
