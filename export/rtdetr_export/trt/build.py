"""ONNX to a TensorRT engine: lint, parse, build, verify, and only then put it in its place.

Networks are strongly typed: the precision is the one in the graph, on TensorRT 10 and 11 alike. TF32 is off, because it
would round what `precision` keeps in FP32. Written for TensorRT 10.x and 11.x.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from rtdetr_deploy.artifacts.metadata import ArtifactInfo, read_metadata
from rtdetr_deploy.errors import ExportError, OptionError, OutputError
from rtdetr_deploy.files import atomic_write, write_bytes
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.packages import require
from rtdetr_deploy.runtimes import open_runtime
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Gpu, import_cuda
from rtdetr_deploy.runtimes.trt.logger import get_logger, last_message, mark
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime, start
from rtdetr_deploy.runtimes.trt.sidecar import AMPERE, EngineInfo, sidecar_path
from rtdetr_deploy.words import plural
from rtdetr_export.options import is_engine
from rtdetr_export.precision.reduce import choose_images
from rtdetr_export.progress import Progress, Steps
from rtdetr_export.result import ExportResult
from rtdetr_export.trt.lint import Finding, lint, load_model
from rtdetr_export.trt.options import ENGINE_SUFFIXES, EngineOptions
from rtdetr_export.verify.engine import EngineReport, count_graph_nodes, verify_engine

if TYPE_CHECKING:
    import tensorrt as trt

MAX_SHOWN_ERRORS = 8

Phase = Callable[[str, int, int], None]
"""Called with the name of a phase of the builder, the steps done and the steps in all."""
UsableGpu = tuple[Cuda, Gpu]


def build_engine(
    onnx: Path,
    output: Path,
    options: EngineOptions | None = None,
    *,
    calibration: Path | None = None,
    progress: Progress | None = None,
    gpu: UsableGpu | None = None,
) -> ExportResult:
    """Build an engine of an ONNX file written here, verify it against ONNX Runtime, and write it and its sidecar.

    It is verified on the images of the folder `calibration`, or on synthetic ones. `gpu` is what `require_gpu` returned
    where that was asked already.

    Raises `ExportError` when TensorRT refuses the graph or the engine disagrees with it (nothing is written then), or
    when the file was not written here, `ArtifactError` when it isn't an ONNX file, `MissingPackageError` without
    TensorRT, `DeviceError` without a usable GPU, `OptionError` and `OutputError`.
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
    with step("build the engine"):
        content = _build_interruptibly(onnx, options, info, lambda *phase: step.say("{} {} of {}".format(*phase)))
    engine_info = _describe(onnx, options, info, device, content)
    with step(f"verify the engine on {plural(len(images), 'image')}"):
        host_code = options.version_compatible
        engine = TensorRtRuntime(content, output.name, engine_info, cuda, device, host_code=host_code)
        report = _verify(engine, onnx, engine_info, images, count_graph_nodes(model))
        report.require(output.name)
    with step(f"write {output.name}"), atomic_write(output) as beside:
        beside.write_bytes(content)
        write_bytes(sidecar_path(output), engine_info.to_json().encode())
    return ExportResult(output, info, report, engine_info=engine_info)


def _verify(
    engine: TensorRtRuntime, onnx: Path, engine_info: EngineInfo, images: Sequence[ImageLike], nodes: dict[str, int]
) -> EngineReport:
    """Compare the engine, which is closed then, with the ONNX file that it was built from."""
    with ExitStack() as stack:
        stack.callback(engine.close)
        reference = open_runtime(onnx)
        stack.callback(reference.close)
        return verify_engine(engine, reference, engine_info, images, nodes)


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
    the options don't suit it.
    """
    require("tensorrt", "building engines", "tensorrt")
    cuda = import_cuda()
    gpu = cuda.gpu()
    if options.hardware_compatible and int(gpu.capability.partition(".")[0]) < AMPERE[0]:
        raise OptionError(f"`hardware_compatible` is for GPUs from Ampere on; this is {gpu.name} ({gpu.capability})")
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


def _build_interruptibly(onnx: Path, options: EngineOptions, info: ArtifactInfo, on_phase: Phase) -> bytes:
    """Run `build` in a thread: Ctrl-C reaches only the main thread, which must not be inside TensorRT then."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(build, onnx, options, info, on_phase, stop)
        try:
            while not wait([future], timeout=0.2).done:
                pass
        except KeyboardInterrupt:
            stop.set()
            wait([future])
            raise
        return future.result()


def build(onnx: Path, options: EngineOptions, info: ArtifactInfo, on_phase: Phase, stop: threading.Event) -> bytes:
    """Return the serialized engine of an ONNX file; the builder ends early once `stop` is set.

    Raises `ExportError` in TensorRT's words, node by node.
    """
    import tensorrt as trt

    since, logger = mark(), get_logger()
    builder = start(trt.Builder, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise ExportError(f"TensorRT {trt.__version__} can't parse {onnx.name}: {describe_errors(parser)}")
    config = configure(builder, network, options, info.batch)
    config.progress_monitor = make_monitor(on_phase, stop)
    cache = _read_timing_cache(config, options.timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ExportError(f"TensorRT {trt.__version__} can't build {onnx.name}: {last_message(since)}")
    if cache is not None and options.timing_cache is not None:
        try:
            write_bytes(options.timing_cache, _to_bytes(cache.serialize()))
        except OutputError as error:  # the engine is worth more than its cache
            warnings.warn(f"the timing cache was not written: {error}", stacklevel=2)
    return _to_bytes(serialized)


def _to_bytes(memory: Any) -> bytes:
    """Return a copy of TensorRT's host memory, which has the buffer protocol but says so to nobody."""
    return bytes(memoryview(memory))


def configure(
    builder: trt.Builder, network: trt.INetworkDefinition, options: EngineOptions, batch: int | None
) -> trt.IBuilderConfig:
    """Return the builder's configuration for a network that takes `batch` images (None: any number)."""
    import tensorrt as trt

    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector can't tell precisions
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if batch is None:
        _add_profile(config, builder, network, options.profile(None))
    return config


def _add_profile(
    config: trt.IBuilderConfig, builder: trt.Builder, network: trt.INetworkDefinition, batches: tuple[int, int, int]
) -> None:
    """Let the engine take the (min, opt, max) `batches`."""
    import tensorrt as trt

    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        other_axes = [int(tensor.shape[axis]) for axis in range(1, len(tensor.shape))]
        profile.set_shape(tensor.name, *(trt.Dims([batch, *other_axes]) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"TensorRT refuses an optimization profile with batches {batches}")


def describe_errors(parser: trt.OnnxParser) -> str:
    """Return the parser's errors, one per node."""
    parts = []
    for index in range(min(parser.num_errors, MAX_SHOWN_ERRORS)):
        error = parser.get_error(index)
        parts.append(f"{error.node_operator()} {error.node_name()}: {error.desc()}")
    return "; ".join(parts) or "it gave no reason"


def _read_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> trt.ITimingCache | None:
    """Use the timing cache in `path`, or a new one; None without a path. A cache of another machine is left out."""
    if path is None:
        return None
    content = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def make_monitor(on_phase: Phase, stop: threading.Event) -> Any:
    """Return a progress monitor that calls `on_phase`, and ends the build at its next step once `stop` is set."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: Any) -> None:
            self._steps[phase_name] = int(num_steps)
            on_phase(phase_name, 0, int(num_steps))

        def step_complete(self, phase_name: str, step: Any) -> bool:
            on_phase(phase_name, int(step) + 1, self._steps.get(phase_name, 0))
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
