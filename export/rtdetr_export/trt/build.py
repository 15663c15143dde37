"""ONNX to a TensorRT engine: lint, parse, build, verify, and only then put it in its place.

Networks are strongly typed: the precision is the one in the graph, on TensorRT 10 and 11 alike. TF32 is off, because it
would round what `precision` keeps in FP32. Written for TensorRT 10.x and 11.x.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.errors import ExportError, OptionError, OutputError
from rtdetr_deploy.files import atomic_write, require_file, write_bytes
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.packages import require
from rtdetr_deploy.runtimes import open_runtime
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Gpu, import_cuda
from rtdetr_deploy.runtimes.trt.logger import last_message, make_logger
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime, start
from rtdetr_deploy.runtimes.trt.sidecar import AMPERE, EngineInfo, sidecar_path
from rtdetr_export.trt.lint import lint_file
from rtdetr_export.verify.engine import EngineReport, count_in_graph, verify_engine

if TYPE_CHECKING:
    import tensorrt as trt

SUFFIXES = (".engine", ".plan")
LARGEST_BATCH = 8
SHOWN_ERRORS = 8

Phase = Callable[[str, int, int], None]
"""Called with the name of a phase of the builder, the steps done and the steps in all."""


@dataclass(frozen=True)
class EngineOptions:
    """Options of `build_engine`.

    `onnx` is the file to build, `output` the engine to write. For a dynamic batch the engine takes 1 to
    `max_batch` images and is tuned for `opt_batch`; a fixed batch leaves nothing to choose. `workspace` limits the
    builder's scratch memory in GiB; `timing_cache` is a file that makes the next build faster; `version_compatible`
    engines run on later TensorRT versions, `hardware_compatible` ones on every GPU from Ampere on (not on a T4), both
    somewhat slower.

    Raises `OptionError` for values outside their ranges.
    """

    onnx: Path
    output: Path
    opt_batch: int = 1
    max_batch: int = LARGEST_BATCH
    workspace: float | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix not in SUFFIXES:
            raise OptionError(f"can't write {self.output.name}: an engine's name must end in {' or '.join(SUFFIXES)}")
        if not 1 <= self.opt_batch <= self.max_batch:
            raise OptionError(
                f"the batch to tune for is {self.opt_batch}; choose 1 to the largest batch, {self.max_batch}"
            )
        if self.workspace is not None and not self.workspace > 0:
            raise OptionError(f"workspace is {self.workspace}, expected GiB above 0")


@dataclass(frozen=True)
class EngineResult:
    """`path` of the written engine, the `facts` stored beside it, and the `report` of its verification."""

    path: Path
    facts: EngineInfo
    report: EngineReport


def build_engine(options: EngineOptions, images: Sequence[ImageLike], on_phase: Phase | None = None) -> EngineResult:
    """Build, verify on `images` against ONNX Runtime, and write an engine and its sidecar.

    Raises `ExportError` when TensorRT refuses the graph or the engine disagrees with it (nothing is written then),
    `MissingPackageError` without TensorRT, `DeviceError` without a usable GPU, `OptionError` and `OutputError`.
    """
    cuda, gpu = require_gpu(options)
    import tensorrt as trt

    if not images:
        raise OptionError("an engine is verified on images; none were given")
    info = read_onnx_info(options.onnx)
    require_buildable(options.onnx)
    content = _build_interruptibly(options, info, on_phase)
    profile = (1, options.opt_batch, options.max_batch) if info.batch is None else (info.batch,) * 3
    facts = EngineInfo(
        info=info,
        tensorrt=trt.__version__,
        gpu=gpu.name,
        capability=gpu.capability,
        profile=profile,
        onnx_digest=hashlib.sha256(options.onnx.read_bytes()).hexdigest(),
        engine_digest=hashlib.sha256(content).hexdigest(),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
    )
    report = _verify(options, content, facts, cuda, gpu, images)
    report.require(options.output.name)
    with atomic_write(options.output) as beside:
        beside.write_bytes(content)
        write_bytes(sidecar_path(options.output), facts.to_json().encode())
    return EngineResult(options.output, facts, report)


def _verify(
    options: EngineOptions, content: bytes, facts: EngineInfo, cuda: Cuda, gpu: Gpu, images: Sequence[ImageLike]
) -> EngineReport:
    with ExitStack() as stack:
        reference = open_runtime(options.onnx)
        stack.callback(reference.close)
        host_code = options.version_compatible
        engine = TensorRtRuntime(content, options.output.name, facts, cuda, gpu, host_code=host_code)
        stack.callback(engine.close)
        return verify_engine(engine, reference, facts, images, count_in_graph(options.onnx))


def require_gpu(options: EngineOptions) -> tuple[Cuda, Gpu]:
    """Return CUDA and the GPU that the engine is built for.

    Raises `MissingPackageError` without TensorRT or cuda-python, `DeviceError` without a usable GPU, `OptionError` when
    the options don't suit it.
    """
    require("tensorrt", "building engines", "tensorrt")
    cuda = import_cuda()
    gpu = cuda.gpu()
    if options.hardware_compatible and int(gpu.capability.partition(".")[0]) < AMPERE[0]:
        raise OptionError(f"--hardware-compatible is for GPUs from Ampere on; this is {gpu.name} ({gpu.capability})")
    return cuda, gpu


def _build_interruptibly(options: EngineOptions, info: ArtifactInfo, on_phase: Phase | None) -> bytes:
    """Run `build` in a thread: Ctrl-C reaches only the main thread, which must not be inside TensorRT then."""
    stop = threading.Event()

    def phase(name: str, done: int, steps: int) -> None:
        if on_phase is not None:
            on_phase(name, done, steps)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(build, options, info, phase, stop)
        try:
            while not wait([future], timeout=0.2).done:
                pass
        except KeyboardInterrupt:
            stop.set()
            wait([future])
            raise
        return future.result()


def read_onnx_info(path: Path) -> ArtifactInfo:
    """Return what is stored in an ONNX file of ours. Raises `ArtifactError`, or `ExportError` for third-party files."""
    require_file(path, ExportError)
    runtime = open_runtime(path)
    info = runtime.info
    runtime.close()
    if info is None:
        raise ExportError(f"{path.name} was not written by rtdetr-export, so its engine could not be verified")
    return info


def require_buildable(path: Path) -> None:
    """Raise `ExportError` when TensorRT's parser is known to refuse the graph, or to get it wrong."""
    errors = [str(finding) for finding in lint_file(path) if finding.severity == "error"]
    if errors:
        raise ExportError(f"TensorRT can't take {path.name}: " + "; ".join(errors[:SHOWN_ERRORS]))


def build(
    options: EngineOptions, info: ArtifactInfo, on_phase: Phase | None = None, stop: threading.Event | None = None
) -> bytes:
    """Return the serialized engine of an ONNX file; the builder ends early once `stop` is set.

    Raises `ExportError` in TensorRT's words, node by node.
    """
    import tensorrt as trt

    messages: list[str] = []
    logger = make_logger(messages)
    builder = start(trt.Builder, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(options.onnx)):
        raise ExportError(f"TensorRT {trt.__version__} can't parse {options.onnx.name}: {describe_errors(parser)}")
    config = configure(builder, network, options, info)
    config.progress_monitor = make_monitor(on_phase, stop or threading.Event())
    cache = _read_timing_cache(config, options.timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ExportError(f"TensorRT {trt.__version__} can't build {options.onnx.name}: {last_message(messages)}")
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
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    options: EngineOptions,
    info: ArtifactInfo,
) -> trt.IBuilderConfig:
    """Return the builder's configuration."""
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
    if info.batch is None:
        profile = builder.create_optimization_profile()
        batches = (1, options.opt_batch, options.max_batch)
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            rest = [int(tensor.shape[axis]) for axis in range(1, len(tensor.shape))]
            smallest, best, largest = (trt.Dims([batch, *rest]) for batch in batches)
            profile.set_shape(tensor.name, smallest, best, largest)
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"TensorRT refuses the batches {batches} of {options.onnx.name}")
    return config


def describe_errors(parser: trt.OnnxParser) -> str:
    """Return the parser's errors, one per node."""
    parts = []
    for index in range(min(parser.num_errors, SHOWN_ERRORS)):
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


def make_monitor(on_phase: Phase | None, stop: threading.Event) -> Any:
    """Return a progress monitor that calls `on_phase`, and ends the build at its next step once `stop` is set."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: Any) -> None:
            self._steps[phase_name] = int(num_steps)
            if on_phase is not None:
                on_phase(phase_name, 0, int(num_steps))

        def step_complete(self, phase_name: str, step: Any) -> bool:
            if on_phase is not None:
                on_phase(phase_name, int(step) + 1, self._steps.get(phase_name, 0))
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def print_phase(name: str, done: int, steps: int) -> None:
    """Show the builder's progress as a moving line on a terminal, which the last step of a phase wipes."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K" if done >= steps else f"\r\x1b[K  {name[:60]}  {done}/{steps}")
        sys.stderr.flush()
