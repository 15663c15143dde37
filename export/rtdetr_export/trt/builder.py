"""One engine as TensorRT's builder makes it: parse, configure, build. What is made of it is in `build`.

Networks are strongly typed: the precision is the one in the graph, on TensorRT 10 and 11 alike. TF32 is off, because it
would round what `precision` keeps in FP32. Written for TensorRT 10.13 to 11.x; what 10.3 lacks is asked for first.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.errors import ExportError, OptionError, OutputError, RtdetrError
from rtdetr_deploy.files import reason, require_file, write_bytes
from rtdetr_deploy.runtimes.trt.calls import PYBIND_ERRORS, ask, explain
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Gpu
from rtdetr_deploy.runtimes.trt.logger import get_logger, mark
from rtdetr_deploy.runtimes.trt.runtime import start
from rtdetr_export.trt.options import EngineOptions

if TYPE_CHECKING:
    import tensorrt as trt

MAX_SHOWN_ERRORS = 8

Phase = Callable[[str, int, int], None]
"""Called with the name of a phase of the builder, the steps done and the steps in all."""
UsableGpu = tuple[Cuda, Gpu]
Made = TypeVar("Made")

_ENUMERATIONS = {"hardware_compatible": "HardwareCompatibilityLevel", "tiling_level": "TilingOptimizationLevel"}
_MEMBERS = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


def build(onnx: Path, options: EngineOptions, info: ArtifactInfo, on_phase: Phase, stop: threading.Event) -> bytes:
    """Return the serialized engine of an ONNX file for the current GPU; the builder ends early once `stop` is set.

    Raises `ExportError` in TensorRT's words, node by node, `OptionError` for a timing cache that can't be read.
    """
    import tensorrt as trt

    logger = get_logger()
    builder = start(trt.Builder, logger)
    with _explained(f"TensorRT {trt.__version__} can't parse {onnx.name}"):
        network = _made(builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(onnx)):
            raise ExportError(f"TensorRT {trt.__version__} can't parse {onnx.name}: {describe_errors(parser)}")
    failure = f"TensorRT {trt.__version__} can't build {onnx.name}"
    with _explained(failure):
        config = configure(builder, network, options, info.batch)
        config.progress_monitor = make_monitor(on_phase, stop)
        cache = _use_timing_cache(config, options.timing_cache)
    serialized = ask(lambda: builder.build_serialized_network(network, config), failure, ExportError)
    if cache is not None and options.timing_cache is not None:
        _write_timing_cache(cache, options.timing_cache)
    with _explained(failure):
        return _to_bytes(serialized)


@contextmanager
def _explained(failure: str) -> Iterator[None]:
    """Turn what pybind11 raises in the block into an `ExportError`: `failure`, and why in TensorRT's words."""
    since = mark()
    try:
        yield
    except RtdetrError:  # some are a `ValueError` too
        raise
    except PYBIND_ERRORS as error:
        raise ExportError(f"{failure}: {explain(since, error)}") from error


def _made(thing: Made | None) -> Made:
    """Return what a factory of TensorRT made; some return None where they fail."""
    if thing is None:
        raise ValueError("TensorRT returned nothing")
    return thing


def _to_bytes(memory: Any) -> bytes:
    """Return a copy of TensorRT's host memory, which has the buffer protocol but says so to nobody."""
    return bytes(memoryview(memory))


def configure(
    builder: trt.Builder, network: trt.INetworkDefinition, options: EngineOptions, batch: int | None
) -> trt.IBuilderConfig:
    """Return the builder's configuration for a network that takes `batch` images (None: any number)."""
    import tensorrt as trt

    config = _made(builder.create_builder_config())
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector can't tell precisions
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    if options.hardware_compatible != "none":
        config.hardware_compatibility_level = _member("hardware_compatible", options.hardware_compatible)
    if options.tiling_level is not None:
        assert hasattr(config, "tiling_optimization_level")  # as `check_api` has found
        config.tiling_optimization_level = _member("tiling_level", options.tiling_level)
    if batch is None:
        _add_profile(config, builder, network, options.profile(None))
    return config


def check_api(options: EngineOptions) -> None:
    """Raise `OptionError` for what the installed TensorRT does not have."""
    if options.hardware_compatible != "none":
        _member("hardware_compatible", options.hardware_compatible)
    if options.tiling_level is not None:
        _member("tiling_level", options.tiling_level)


def _member(option: str, value: str) -> Any:
    """Return the member of TensorRT's enumeration that `option` stands for. Raises `OptionError` where it has none."""
    import tensorrt as trt

    enumeration, name = _ENUMERATIONS[option], _MEMBERS.get(value, value.upper())
    found = getattr(getattr(trt, enumeration, None), name, None)
    if found is None:
        raise OptionError(
            f'`{option}="{value}"` is not known to TensorRT {trt.__version__}; update it, or leave it out'
        )
    return found


def _add_profile(
    config: trt.IBuilderConfig, builder: trt.Builder, network: trt.INetworkDefinition, batches: tuple[int, int, int]
) -> None:
    """Let the engine take the (min, opt, max) `batches`."""
    import tensorrt as trt

    profile = _made(builder.create_optimization_profile())
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


def _use_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> trt.ITimingCache | None:
    """Use the timing cache in `path`, or a new one; None without a path. A cache of another machine is left out."""
    if path is None:
        return None
    cache = config.create_timing_cache(_read_timing_cache(path))
    if cache is None or not config.set_timing_cache(cache, False):
        cache = _made(config.create_timing_cache(b""))
        config.set_timing_cache(cache, False)
    return cache


def _read_timing_cache(path: Path) -> bytes:
    """Return the content of a timing cache, nothing where there is none yet. Raises `OptionError`."""
    if not path.exists():
        return b""
    require_file(path, OptionError)
    try:
        return path.read_bytes()
    except OSError as error:
        raise OptionError(f"can't read {path}: {reason(error)}") from error


def _write_timing_cache(cache: trt.ITimingCache, path: Path) -> None:
    """Write a timing cache, or warn: the engine is worth more than its cache."""
    try:
        write_bytes(path, _to_bytes(_made(cache.serialize())))
    except (OutputError, *PYBIND_ERRORS) as error:
        warnings.warn(f"the timing cache was not written: {error}", stacklevel=3)


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
