"""ONNX to a TensorRT engine: lint, build, verify, and only then put it in its place."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from onnx import ModelProto

from rtdetr_deploy import __version__
from rtdetr_deploy.artifacts.metadata import ArtifactInfo, read_metadata
from rtdetr_deploy.errors import ExportError, OptionError
from rtdetr_deploy.files import atomic_write, write_bytes
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.runtimes.trt.cuda import Gpu, import_cuda
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime
from rtdetr_deploy.runtimes.trt.sidecar import AMPERE, EngineInfo, sidecar_path, version_numbers
from rtdetr_deploy.runtimes.trt.supported import require_tensorrt
from rtdetr_deploy.words import plural
from rtdetr_export.options import is_engine
from rtdetr_export.precision.reduce import choose_images
from rtdetr_export.progress import Progress, Steps
from rtdetr_export.result import ExportResult
from rtdetr_export.trt.builder import MAX_SHOWN_ERRORS, Phase, UsableGpu, build, check_api
from rtdetr_export.trt.diagnosis import Diagnosis
from rtdetr_export.trt.lint import Finding, lint, load_model
from rtdetr_export.trt.options import ENGINE_SUFFIXES, EngineOptions
from rtdetr_export.trt.trtexec import trtexec_line
from rtdetr_export.verify.engine import EngineReport, count_graph_nodes, verify_engine
from rtdetr_export.verify.reference import Reference, open_reference

TURING = (7, 5)
"""The compute capability from which engines for the same one can be built."""


def build_engine(
    onnx: Path,
    output: Path,
    options: EngineOptions | None = None,
    *,
    calibration: Path | None = None,
    progress: Progress | None = None,
    gpu: UsableGpu | None = None,
) -> ExportResult:
    """Build an engine of an ONNX file written here, verify it, and write it and its sidecar.

    It is compared with `options.reference`, else with ONNX Runtime running the same file, on the images of the folder
    `calibration`, or on synthetic ones. `gpu` is what `require_gpu` returned where that was asked already.

    Raises `ExportError` when TensorRT refuses the graph or the engine disagrees with its reference, or when the file
    was not written here, `ArtifactError` when it isn't an ONNX file, `MissingPackageError` without TensorRT,
    `DeviceError` without a usable GPU, `OptionError` and `OutputError`. No engine is written then; what explains a
    failed build or verification is kept beside its name (see `diagnosis`) and named in the error.
    """
    options = options or EngineOptions()
    if not is_engine(output):
        raise OptionError(f"`output` is {output.name}, expected a name that ends in {' or '.join(ENGINE_SUFFIXES)}")
    cuda, device = gpu or require_gpu(options)
    step = Steps(progress)
    with step(f"check {onnx.name}"):
        model = load_model(onnx)
        info = info_of(model, onnx.name)
        options.check_batch(info.batch, onnx.name)
        refuse_findings(lint(model), onnx.name)
        images = choose_images(calibration, info.height, info.width)
        reference = open_reference(options.reference, onnx, info)
    command = trtexec_line(onnx, output, options, info)
    kept = Diagnosis(output, _log_header(onnx, options, device, command))
    with closing(reference.runtime):
        with step("build the engine"), kept.explaining():
            tell = partial(_tell, step)
            content = kept.content = _build_interruptibly(onnx, options, info, (cuda, device), tell)
        engine_info = _describe(onnx, options, info, device, content)
        with step(f"verify the engine on {plural(len(images), 'image')}"):
            job = EngineJob(output.name, engine_info, images, count_graph_nodes(model))
            report = _verify(content, job, (cuda, device), reference, kept, accept=options.accept)
    engine_info = replace(engine_info, accepted=not report.passed, report=report.in_full())
    with step(f"write {output.name}"):
        write_engine(output, content, engine_info)
    if options.keep_log or not report.passed:
        kept.keep(note=report.in_full())
    else:
        kept.clear()
    return ExportResult(output, info, report, engine_info=engine_info, trtexec=command)


def write_engine(output: Path, content: bytes, engine_info: EngineInfo) -> None:
    """Write an engine and its sidecar, both or neither. Raises `OutputError`."""
    with atomic_write(sidecar_path(output)) as sidecar:
        sidecar.write_text(engine_info.to_json())
        write_bytes(output, content)  # in its place before its sidecar, which only has to be renamed then


@dataclass(frozen=True)
class EngineJob:
    """What an engine called `name` is verified by: its facts, the images, and the ONNX file's nodes by precision."""

    name: str
    engine_info: EngineInfo
    images: Sequence[ImageLike]
    graph_nodes: dict[str, int]


def _verify(
    content: bytes, job: EngineJob, gpu: UsableGpu, reference: Reference, kept: Diagnosis, *, accept: bool
) -> EngineReport:
    """Run an engine, and return its report where it passed or is accepted as it is; else keep what explains it."""
    host_code = job.engine_info.version_compatible
    with kept.explaining():
        with closing(TensorRtRuntime(content, job.name, job.engine_info, *gpu, host_code=host_code)) as engine:
            report = verify_engine(engine, reference, job.engine_info, job.images, job.graph_nodes)
        kept.layers = report.inspected
    if not accept:
        with kept.explaining("; `accept=True` writes it all the same"):
            report.require(job.name)
    return report


def _tell(step: Steps, phase: str, done: int, total: int) -> None:
    step.say(f"{phase} {done} of {total}")


def _log_header(onnx: Path, options: EngineOptions, gpu: Gpu, command: str) -> str:
    """Return what the log begins with: all that one asks for first."""
    import tensorrt as trt

    return (
        f"rtdetr-deploy {__version__}, TensorRT {trt.__version__}\n"
        f"GPU {gpu.number}: {gpu.name}, compute capability {gpu.capability}, {gpu.memory >> 20} MiB\n"
        f"{onnx.name}: SHA-256 {hashlib.sha256(onnx.read_bytes()).hexdigest()}\n{options}\n{command}\n"
    )


def _describe(onnx: Path, options: EngineOptions, info: ArtifactInfo, gpu: Gpu, content: bytes) -> EngineInfo:
    import tensorrt as trt

    return EngineInfo(
        info=info,
        tensorrt=trt.__version__,
        gpu=gpu.name,
        capability=gpu.capability,
        profile=options.profile(info.batch),
        onnx_digest=hashlib.sha256(onnx.read_bytes()).hexdigest(),
        engine_digest=hashlib.sha256(content).hexdigest(),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
    )


def require_gpu(options: EngineOptions) -> UsableGpu:
    """Return CUDA and the GPU that the engine is built for.

    Raises `MissingPackageError` without TensorRT or cuda-python, `DeviceError` without a usable GPU, `OptionError` when
    the options don't suit it or the installed TensorRT.
    """
    require_tensorrt("building engines")
    check_api(options)
    cuda = import_cuda()
    gpu = cuda.gpu(options.gpu_number)
    here, level = f"{gpu.name} ({gpu.capability})", options.hardware_compatible
    if level == "ampere+" and version_numbers(gpu.capability) < AMPERE:
        raise OptionError(f'`hardware_compatible="{level}"` is for GPUs from Ampere on; this is {here}')
    if level == "same-compute-capability" and version_numbers(gpu.capability) < TURING:
        raise OptionError(f'`hardware_compatible="{level}"` is for GPUs from Turing on; this is {here}')
    return cuda, gpu


def info_of(model: ModelProto, name: str) -> ArtifactInfo:
    """Return what is stored in a model that was written here. Raises `ExportError` for a third-party file `name`."""
    info = read_metadata({entry.key: entry.value for entry in model.metadata_props}, name)
    if info is None:
        raise ExportError(f"{name} was not written by rtdetr-export, so its engine could not be verified")
    return info


def refuse_findings(findings: Sequence[Finding], name: str) -> None:
    """Raise `ExportError` when TensorRT's parser is known to refuse the graph, or to get it wrong."""
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors:
        raise ExportError(f"TensorRT can't take {name}: " + "; ".join(errors[:MAX_SHOWN_ERRORS]))


def _build_interruptibly(
    onnx: Path, options: EngineOptions, info: ArtifactInfo, gpu: UsableGpu, on_phase: Phase
) -> bytes:
    """Run `build` in a thread: Ctrl-C reaches only the main thread, which must not be inside TensorRT then."""
    cuda, device = gpu
    stop = threading.Event()

    def work() -> bytes:
        with cuda.using(device):  # TensorRT builds for the thread's current GPU: the first one, in a new thread
            return build(onnx, options, info, on_phase, stop)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            while not wait([future], timeout=0.2).done:
                pass
        except KeyboardInterrupt:
            stop.set()
            wait([future])
            raise
        return future.result()
