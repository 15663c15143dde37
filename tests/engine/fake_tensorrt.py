"""A strict double of the part of `tensorrt` that the runtime uses; an ONNX file stands for the engine.

It holds callers to TensorRT's contract: every address set to a block that is large enough, shapes within the profile,
working memory given, the stream alive; what breaks it returns False or raises, as TensorRT does. Names and signatures
are compared with the real bindings' lists by a test.
"""

from __future__ import annotations

import ctypes
import enum
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fake_cuda import FakeCuda
from rtdetr_deploy.runtimes.options import RuntimeOptions
from rtdetr_deploy.runtimes.ort import open_model

__version__ = "10.13.3.9"
WORKSPACE = 4096
MAGIC = b"engine:"


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class TensorFormat(enum.Enum):
    LINEAR = 0
    CHW2 = 1
    HWC8 = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DataType(enum.Enum):
    FLOAT = "tensor(float)"
    UINT8 = "tensor(uint8)"
    INT32 = "tensor(int32)"
    INT64 = "tensor(int64)"


def nptype(trt_type: DataType) -> Any:
    types = {DataType.FLOAT: np.float32, DataType.UINT8: np.uint8, DataType.INT32: np.int32, DataType.INT64: np.int64}
    return types[trt_type]


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self.ready = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    register(logger, "initLibNvInferPlugins")
    assert not namespace
    WORLD.plugins = True
    return True


class World:
    """What the double works in: the CUDA double, and the batches of the engine's profile."""

    def __init__(self, cuda: FakeCuda, profile: tuple[int, int, int] = (1, 1, 4)) -> None:
        self.cuda = cuda
        self.profile = profile
        self.contexts_alive = 0
        self.engines_alive = 0
        self.executions = 0
        self.plugins = False
        self.refuse = False
        self.parser_errors: list[ParserError] = []
        self.instead: bytes | None = None  # what a miscompiling builder makes of any graph
        self.build_error = ""  # what a builder says that gives nothing
        self.shift = 0.0  # what kernels of another rounding add to boxes, in shares of the image
        self.shifted = 0  # how many boxes of a row that concerns, from the best on
        self.row_noise = 0.0
        self.eleven = False  # the inspector's fields of TensorRT 11
        self.claims: str | None = None  # precision that every layer really has
        self.builds: list[IBuilderConfig] = []
        self.locations: dict[str, TensorLocation] = {}
        self.formats: dict[str, TensorFormat] = {}
        self.logger: weakref.ref[ILogger] | None = None

    def say(self, severity: ILogger.Severity, text: str) -> None:
        """Tell the process's logger, whoever speaks; TensorRT keeps its address and nothing more."""
        assert self.logger is not None
        logger = self.logger()
        assert logger is not None, "use after free: the registered logger is gone"
        logger.log(severity, text)


WORLD = World(FakeCuda())


def register(logger: ILogger, what: str) -> None:
    """Take the process's logger: the first one stays, as in TensorRT."""
    assert logger.ready, "ILogger.__init__ was not called"
    if WORLD.logger is None:
        WORLD.logger = weakref.ref(logger)
    elif WORLD.logger() is not logger:
        text = f"The logger passed into {what} differs from one already registered for an existing builder"
        WORLD.say(ILogger.WARNING, text + ", runtime, or refitter. So the current new logger is ignored.")


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        register(logger, "createInferRuntime")
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not serialized_engine.startswith(MAGIC):
            WORLD.say(ILogger.ERROR, "Serialization assertion\nmagicTag failed.")
            return None
        return ICudaEngine(serialized_engine[len(MAGIC) :])


def _open_session(content: bytes) -> Any:
    """Open the bytes as ONNX Runtime's own runtime does: INT8 that meets FP16 is not optimized wrongly."""
    return open_model(content, RuntimeOptions())._session


class ICudaEngine:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.session = _open_session(content)
        self._inputs = {value.name: value for value in self.session.get_inputs()}
        self._outputs = {value.name: value for value in self.session.get_outputs()}
        self._names: list[str] = [*self._inputs, *self._outputs]
        self.dynamic = isinstance(next(iter(self._inputs.values())).shape[0], str)
        self.device_memory_size_v2 = WORKSPACE
        self.num_io_tensors = len(self._names)
        self._gpu = WORLD.cuda.current
        WORLD.engines_alive += 1

    def __del__(self) -> None:
        WORLD.engines_alive -= 1
        if WORLD.cuda.current != self._gpu:
            WORLD.cuda.faults.append("destroy engine while another GPU is current")

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType({**self._inputs, **self._outputs}[name].type)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = {**self._inputs, **self._outputs}[name].shape
        return tuple(-1 if isinstance(axis, str) else axis for axis in shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return WORLD.locations.get(name, TensorLocation.DEVICE)

    def get_tensor_format(self, name: str) -> TensorFormat:
        return WORLD.formats.get(name, TensorFormat.LINEAR)

    def get_tensor_vectorized_dim(self, name: str) -> int:
        return 1 if self.get_tensor_format(name) != TensorFormat.LINEAR else -1

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        assert self.get_tensor_mode(name) == TensorIOMode.INPUT, "profiles are for inputs"
        assert self.get_tensor_location(name) == TensorLocation.DEVICE, "shapes of inputs on the CPU are their values"
        batch, *rest = self.get_tensor_shape(name)
        return [(size, *rest) for size in (WORLD.profile if batch < 0 else (batch,) * 3)]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext:
        return IExecutionContext(self, strategy)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.engine = engine
        self._own_memory = strategy == ExecutionContextAllocationStrategy.STATIC
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._warm = False
        WORLD.contexts_alive += 1

    def __del__(self) -> None:
        WORLD.contexts_alive -= 1
        if WORLD.cuda.in_flight(id(self)):
            WORLD.cuda.faults.append("destroy context with work in flight")

    def set_device_memory(self, memory: int, size: int) -> None:
        block = WORLD.cuda.device.get(memory)
        self._own_memory = block is not None and size >= WORKSPACE and ctypes.sizeof(block) >= WORKSPACE

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.engine.get_tensor_mode(name) != TensorIOMode.INPUT:
            return False
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            WORLD.say(ILogger.ERROR, f"{name}: {shape} is not within the profile")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine._names or memory not in WORLD.cuda.device:
            return False
        self._addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self._shapes.values()), (1,))[0]
        shape = self.engine.get_tensor_shape(name)
        return tuple(batch if axis < 0 else axis for axis in shape)

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine._inputs if name not in self._shapes and self.engine.dynamic]

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, cuda = self.engine, WORLD.cuda
        capturing = stream_handle in cuda.capturing
        ready = self._own_memory and set(self._addresses) == set(engine._names) and not self.infer_shapes()
        if WORLD.refuse or not ready or (capturing and not self._warm):
            WORLD.say(ILogger.ERROR, "Error Code 3: API Usage Error (not everything is set)")
            return False
        self._warm = True
        return cuda.enqueue(stream_handle, self._execute, id(self), *self._addresses.values())

    def _execute(self) -> None:
        feed = {}
        for name, value in self.engine._inputs.items():
            shape = self._shapes.get(name, tuple(value.shape))
            dtype = np.dtype(nptype(DataType(value.type)))
            feed[name] = self._view(name, shape, dtype).copy()
        for name, result in zip(self.engine._outputs, self.engine.session.run(None, feed), strict=True):
            noisy = result.copy()
            if name == "boxes":
                noisy[:, : WORLD.shifted] += WORLD.shift
            if WORLD.row_noise and noisy.dtype == np.float32:
                noisy[1:] += WORLD.row_noise
            self._view(name, result.shape, result.dtype)[...] = noisy
        WORLD.executions += 1

    def _view(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        block = WORLD.cuda.device[self._addresses[name]]
        size = int(np.prod(shape)) * dtype.itemsize
        assert ctypes.sizeof(block) >= size, f"{name} needs {size} bytes"
        return np.frombuffer(memoryview(block).cast("B"), np.uint8, size).view(dtype).reshape(shape)


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class EngineInspector:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self.execution_context: IExecutionContext | None = None

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        """List convolutions and matrix products with the types that the graph gives them."""
        assert format == LayerInformationFormat.JSON
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(self._engine.content))
        graph = model.graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
        restored = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        layers = []
        for node in graph.node:
            if node.op_type in ("Conv", "MatMul"):
                half = types.get(node.input[0]) == onnx.TensorProto.FLOAT16
                kind = WORLD.claims or ("Int8" if node.input[0] in restored else "Half" if half else "Float")
                if self.execution_context is None and self._engine.dynamic:
                    kind = "N/A due to dynamic shapes"
                told = {"Datatype": kind, "Format": "NCHW"} if WORLD.eleven else {"Format/Datatype": f"{kind} NCHW"}
                inputs = [{"Name": node.input[0], **told}]
                layers.append({"Name": node.name, "LayerType": "CaskConvolution", "Inputs": inputs})
        metadata = "[ONNX Layer: /a\x1e/b\x1f]"  # the separators as they are, which JSON doesn't allow
        text = json.dumps({"Layers": layers, "Bindings": [], "Metadata": "@"})
        return text.replace("@", metadata)


class BuilderFlag(enum.Enum):
    TF32 = 7
    VERSION_COMPATIBLE = 16


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class TilingOptimizationLevel(enum.Enum):
    NONE = 0
    FAST = 1
    MODERATE = 2
    FULL = 3


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class Dims(tuple):  # type: ignore[type-arg]
    """A tuple, as far as callers here see."""


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, Dims(shape)


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.strongly_typed = bool(flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.content = b""
        self.inputs: list[ITensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]


class ParserError:
    def __init__(self, name: str, operator: str, text: str) -> None:
        self._parts = name, operator, text

    def node_name(self) -> str:
        return self._parts[0]

    def node_operator(self) -> str:
        return self._parts[1]

    def desc(self) -> str:
        return self._parts[2]


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network

    @property
    def num_errors(self) -> int:
        return len(WORLD.parser_errors)

    def get_error(self, index: int) -> ParserError:
        return WORLD.parser_errors[index]

    def parse_from_file(self, model: str) -> bool:
        content = Path(model).read_bytes()
        graph = onnx.load_from_string(content).graph
        self._network.content = content
        for value in graph.input:
            shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
            self._network.inputs.append(ITensor(value.name, shape))
        return not WORLD.parser_errors


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Dims, Dims, Dims]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:
        assert all(isinstance(dims, Dims) for dims in (min, opt, max))
        self.shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.pools: dict[MemoryPoolType, int] = {}
        self.profiles: list[IOptimizationProfile] = []
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.builder_optimization_level = 3
        self.max_aux_streams = -1
        self.tiling_optimization_level: TilingOptimizationLevel | None = None
        self.built_on: int | None = None  # not of TensorRT: the current GPU of the thread that built
        self.progress_monitor: IProgressMonitor | None = None
        self.cache: ITimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        fits = all(low[0] <= best[0] <= high[0] for low, best, high in profile.shapes.values())
        self.profiles.append(profile)
        return len(self.profiles) - 1 if fits else -1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache.content.startswith(b"other machine"):
            return False
        self.cache = cache
        return True


class IProgressMonitor:
    def __init__(self) -> None:
        self.ready = True


class Builder:
    def __init__(self, logger: ILogger) -> None:
        register(logger, "createInferBuilder")

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        WORLD.builds.append(config)
        config.built_on = WORLD.cuda.cudaGetDevice()[1]
        WORLD.say(ILogger.INFO, "Detected 1 inputs and 3 output network tensors.")
        if WORLD.build_error:
            WORLD.say(ILogger.ERROR, WORLD.build_error)
            return None
        dynamic = [tensor for tensor in network.inputs if -1 in tensor.shape]
        if dynamic and not config.profiles:
            WORLD.say(ILogger.ERROR, "Network has dynamic inputs, but no optimization profile has been defined.")
            return None
        assert network.strongly_typed
        monitor: Any = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            going = all([monitor.step_complete("Building Engine", step) for step in range(2)])
            monitor.phase_finish("Building Engine")
            if not going:
                return None
        if config.profiles:
            low, best, high = next(iter(config.profiles[0].shapes.values()))
            WORLD.profile = (low[0], best[0], high[0])
        return MAGIC + (WORLD.instead or network.content)
