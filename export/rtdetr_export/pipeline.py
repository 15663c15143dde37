"""Checkpoint to ONNX or OpenVINO: load, fold, trace, simplify, verify, and only then put the file in its place.

The graph is traced by torch's TorchScript-based exporter and simplified by onnxscript. Against the dynamo exporter
this gives fewer nodes (545 against 564 for r18 at opset 18), every opset from 17 to 19 without conversion (dynamo
starts at 18), no stack traces with local paths in the file, and takes 3 instead of 5 s; both files run equally fast
(see docs/measurements.md).
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir
import torch
from torch import nn

from rtdetr_deploy import __version__
from rtdetr_deploy.artifacts.cascade import check_cascade
from rtdetr_deploy.artifacts.class_names import read_class_names
from rtdetr_deploy.artifacts.metadata import INPUT, METADATA_KEY, ArtifactInfo
from rtdetr_deploy.errors import ExportError, OptionError
from rtdetr_deploy.files import atomic_write
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.model import Checkpoint, load_checkpoint
from rtdetr_deploy.model.family import family_of
from rtdetr_deploy.words import plural
from rtdetr_export.checks import check_files
from rtdetr_export.graph import DeployedModel, NormalizeUint8, PostProcessor
from rtdetr_export.module_map import ModuleMap, record_modules
from rtdetr_export.openvino_file import SUFFIX, write_xml, written_together
from rtdetr_export.options import ExportOptions
from rtdetr_export.precision.bf16 import find_fp32_nodes
from rtdetr_export.precision.fp16 import compile_pattern
from rtdetr_export.precision.placement import Placement, place
from rtdetr_export.precision.reduce import choose_images, reduce_to_fp16, reduce_to_int8
from rtdetr_export.progress import Progress, Steps
from rtdetr_export.result import ExportResult
from rtdetr_export.simplify import serialize, simplify
from rtdetr_export.verify.arithmetics import ArithmeticsReport, compare_arithmetics
from rtdetr_export.verify.parity import verify_file
from rtdetr_export.verify.reduced_precision import ReducedPrecisionReport, verify_reduced_precision
from rtdetr_export.verify.report import Report

OUTPUTS = {False: ("labels", "boxes", "scores"), True: ("logits", "boxes")}


def export_onnx(
    options: ExportOptions, progress: Progress | None = None, *, fp32_copy: Path | None = None
) -> ExportResult:
    """Export a checkpoint as `options` say. The same input gives the same bytes.

    `fp32_copy` is where the FP32 graph is written that a lower precision starts from.

    Raises `CheckpointError` and `OptionError` for bad input, `ExportError` when the file disagrees with the torch
    model (no file is left then), `OutputError` when it can't be written.
    """
    if options.is_engine:
        raise OptionError(f"`output` is {options.output}, an engine; rtdetr_export.export builds those too")
    options = check_files(options)
    step = Steps(progress)
    traced = trace_checkpoint(options, step)
    graph, info, reference = traced.graph, traced.info, traced.checkpoint.model
    options = options.fitted_to((info.height, info.width))
    if fp32_copy is not None:
        fp32_copy.write_bytes(_to_file(graph, replace(info, precision="fp32", verified=False)))
    fp16, quantization = None, None
    images: list[ImageLike] = []
    if options.precision != "fp32" or options.calibration is not None:
        images = choose_images(options.calibration, *options.input_size)
    if options.precision == "int8":
        with step(f"choose INT8 blocks on {plural(len(images), 'image')}"), _enough_memory(options):
            quantization = reduce_to_int8(
                graph,
                traced.placement,
                info,
                images,
                options.keep_fp32,
                for_cpu=not options.fuses_for_gpu,
                on_done=step.say,
            )
    if options.places_fp16:
        with step(f"measure values on {plural(len(images), 'image')}, place FP16"), _enough_memory(options):
            fp16 = reduce_to_fp16(graph, traced.placement, info, images, options.keep_fp32)
    path = options.output or options.default_output(info)
    report: Report | None = None
    arithmetics: ArithmeticsReport | None = None
    with written_together(path) if options.is_xml else atomic_write(path) as beside:
        with step("write"):
            _write(beside, graph, info)
        if options.verify:
            with step("verify against torch"), _enough_memory(options):
                if options.precision == "fp32":
                    report = verify_file(beside, reference, info)
                else:
                    report = verify_reduced_precision(beside, reference, info, images)
                report.require(path.name)
            if isinstance(report, ReducedPrecisionReport):
                info = replace(info, match_rate=round(report.agreement.match_rate(-1), 4))
                _write(beside, graph, info)
            if options.target == "cpu":
                with step("compare BF16 with FP32"), _enough_memory(options):
                    arithmetics = compare_arithmetics(beside, info, images if options.calibration is not None else ())
            if arithmetics is not None and arithmetics.check is not None:
                info = replace(info, bf16=arithmetics.check)
                _write(beside, graph, info)
    return ExportResult(path, info, report, fp16, quantization, arithmetics)


def _write(path: Path, graph: onnx_ir.Model, info: ArtifactInfo) -> None:
    """Write the graph as what `path` is called: an ONNX file, or OpenVINO's files."""
    content = _to_file(graph, info)
    if path.suffix.lower() == SUFFIX:
        write_xml(content, {METADATA_KEY: info.to_json()}, path)
    else:
        path.write_bytes(content)


def _to_file(graph: onnx_ir.Model, info: ArtifactInfo) -> bytes:
    """Return the content of an ONNX file that holds `info`."""
    return serialize(graph, {METADATA_KEY: info.to_json()}, __version__)


@dataclass(frozen=True)
class TracedCheckpoint:
    """A checkpoint as an FP32 graph in memory, which lower precisions start from, with the `info` for its file."""

    checkpoint: Checkpoint
    info: ArtifactInfo
    graph: onnx_ir.Model
    deployed: DeployedModel
    modules: ModuleMap

    @cached_property
    def placement(self) -> Placement:
        """What the model's family says about the nodes; read it before `graph` is changed."""
        return place(self.graph, self.deployed, self.modules)


def trace_checkpoint(options: ExportOptions, step: Steps | None = None) -> TracedCheckpoint:
    """Load, fold, trace and simplify a checkpoint as `options` say; raises what `export_onnx` does."""
    step = step or Steps(None)
    names = options.class_names
    if isinstance(names, Path):
        names = read_class_names(names)
    with step("load " + options.weights.name):
        checkpoint = load_checkpoint(
            options.weights,
            variant=options.variant,
            layers=options.layers,
            queries=options.queries,
            cascade=options.cascade,
            class_names=names,
        )
        sampler = decide_sampler(checkpoint, options.sampler)
    options = options.fitted_to(checkpoint.input_size)
    info = describe_export(checkpoint, options, sampler)
    with step("fold batch normalization and RepVGG branches"):
        deployed = build_deployed(checkpoint.model, sampler, options)
    with step("trace"), _enough_memory(options):
        traced = trace(deployed, options)
    with step("simplify"):
        graph = simplify(traced.content)
        for pattern in options.keep_fp32:
            compile_pattern(pattern, list(graph.graph))
    info = replace(info, fp32_nodes=find_fp32_nodes(graph, deployed, traced.modules))
    return TracedCheckpoint(checkpoint, info, graph, deployed, traced.modules)


def decide_sampler(checkpoint: Checkpoint, asked: str | None) -> str:
    """Return the sampler to export: what was asked for, else the first of those that the model's family names.

    Raises `OptionError` for a sampler that computes another function than the one the model was trained with.
    """
    allowed = family_of(checkpoint.model).samplers(checkpoint.model)
    if asked is None or asked in allowed:
        return asked or allowed[0]
    name = checkpoint.variant.name
    if asked == "discrete":
        raise OptionError(
            f'`sampler="discrete"` changes what {name} detects: it is for models that were trained with discrete '
            f'sampling. If this one was, say so: `variant="{name}-dsp"`'
        )
    raise OptionError(f"{name} was trained with {allowed[0]} sampling; leave `sampler` out")


def build_deployed(model: nn.Module, sampler: str, options: ExportOptions) -> DeployedModel:
    """Return the module that is traced, in eval mode: `model` folded, and what stands around it."""
    family = family_of(model)
    folded = family.fold(model)
    family.use_sampler(folded, sampler)
    if options.fuses_for_gpu:
        family.fuse_for_gpu(folded)
    else:
        family.to_cpu_form(folded, options.precision)
    if options.places_fp16:
        family.to_fp16_form(folded)
    preprocess = NormalizeUint8() if options.takes_uint8 else None
    if not options.raw_output and family.decoding.kind != "sigmoid":
        raise OptionError(
            f"scores of {family.name} models ({family.decoding.kind}) are decoded by the Predictor alone; add "
            "`raw_output=True`"
        )
    postprocess = None if options.raw_output else PostProcessor(options.max_detections)
    return DeployedModel(folded, preprocess, postprocess).eval()


def describe_export(checkpoint: Checkpoint, options: ExportOptions, sampler: str) -> ArtifactInfo:
    """Return the metadata that are stored in the file."""
    height, width = options.input_size
    family = family_of(checkpoint.model)
    facts = family.facts(checkpoint.model, height, width)
    if options.cascade is not None:  # there may be fewer tokens than queries
        check_cascade(options.cascade, facts.layers, facts.queries)
    return ArtifactInfo(
        class_names=checkpoint.class_names,
        height=height,
        width=width,
        batch=options.batch,
        variant=facts.variant,
        layers=facts.layers,
        queries=facts.queries,
        max_detections=min(options.max_detections, facts.output_queries * facts.classes),
        precision=options.precision,
        sampler=sampler,
        outputs="raw" if options.raw_output else "detections",
        raw_input=options.takes_uint8,
        opset=options.graph_opset,
        source=options.weights.name,
        source_digest=checkpoint.digest,
        verified=options.verify,
        version=__version__,
        family=family.name,
        preprocess=family.preprocess((height, width), "uint8" if options.takes_uint8 else "float32"),
        decoding=family.decoding,
        cascade=facts.cascade,
    )


@dataclass(frozen=True)
class Traced:
    """A serialized ONNX model and which module made each of its nodes."""

    content: bytes
    modules: ModuleMap


def trace(deployed: DeployedModel, options: ExportOptions) -> Traced:
    """Return `deployed` as an ONNX model with the batch, size and opset of `options`."""
    batch = options.batch or 1
    if options.takes_uint8:
        images = torch.zeros(batch, *options.input_size, 3, dtype=torch.uint8)
    else:
        images = torch.zeros(batch, 3, *options.input_size)
    outputs = OUTPUTS[options.raw_output]
    dynamic = {name: {0: "batch"} for name in (INPUT, *outputs)} if options.batch is None else None
    with TemporaryDirectory() as folder, _quiet(), record_modules(deployed) as modules:
        path = Path(folder, "traced.onnx")
        torch.onnx.export(
            deployed,
            (images,),
            path,
            dynamo=False,
            opset_version=options.graph_opset,
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_axes=dynamic,
        )
        return Traced(path.read_bytes(), ModuleMap(modules))


@contextmanager
def _enough_memory(options: ExportOptions) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("alloc|overflow", str(error).lower()):
            raise
        raise ExportError(
            f"not enough memory for batch {options.batch or 1} of {'x'.join(map(str, options.input_size))} images; "
            "choose a smaller batch or size"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: sizes that become constants are meant to, and its deprecation is known."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
