"""A strict double of the part of `tensorrt` that the runtime uses; an ONNX file stands for the engine.

It holds callers to TensorRT's contract: every address set to a block that is large enough, shapes within the profile,
working memory given, the stream alive; what breaks it returns False or raises, as TensorRT does. Names and signatures
are compared with the real bindings' lists by a test.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Any

import numpy as np
import onnxruntime

from fake_cuda import FakeCuda

__version__ = "10.13.3.9"
WORKSPACE = 4096
MAGIC = b"engine:"


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DataType(enum.Enum):
    FLOAT = "tensor(float)"
    UINT8 = "tensor(uint8)"
    INT32 = "tensor(int32)"


def nptype(trt_type: DataType) -> Any:
    return {DataType.FLOAT: np.float32, DataType.UINT8: np.uint8, DataType.INT32: np.int32}[trt_type]


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


class World:
    """What the double works in: the CUDA double, and the batches of the engine's profile."""

    def __init__(self, cuda: FakeCuda, profile: tuple[int, int, int] = (1, 1, 4)) -> None:
        self.cuda = cuda
        self.profile = profile
        self.contexts_alive = 0
        self.engines_alive = 0
        self.executions = 0
        self.refuse = False
        self.problems: list[str] = []


WORLD = World(FakeCuda())


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert logger.ready, "ILogger.__init__ was not called"
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not serialized_engine.startswith(MAGIC):
            self.logger.log(ILogger.ERROR, "Serialization assertion\nmagicTag failed.")
            return None
        return ICudaEngine(serialized_engine[len(MAGIC) :], self.logger)


class ICudaEngine:
    def __init__(self, content: bytes, logger: ILogger) -> None:
        self.logger = logger
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        self._inputs = {value.name: value for value in self.session.get_inputs()}
        self._outputs = {value.name: value for value in self.session.get_outputs()}
        self._names: list[str] = [*self._inputs, *self._outputs]
        self.dynamic = isinstance(next(iter(self._inputs.values())).shape[0], str)
        self.device_memory_size_v2 = WORKSPACE
        self.num_io_tensors = len(self._names)
        WORLD.engines_alive += 1

    def __del__(self) -> None:
        if WORLD.contexts_alive:
            WORLD.problems.append("the engine was destroyed before its contexts")
        WORLD.engines_alive -= 1

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType({**self._inputs, **self._outputs}[name].type)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = {**self._inputs, **self._outputs}[name].shape
        return tuple(-1 if isinstance(axis, str) else axis for axis in shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        assert self.get_tensor_mode(name) == TensorIOMode.INPUT, "profiles are for inputs"
        batch, *rest = self.get_tensor_shape(name)
        return [(size, *rest) for size in (WORLD.profile if batch < 0 else (batch,) * 3)]

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

    def set_device_memory(self, memory: int, size: int) -> None:
        block = WORLD.cuda.device.get(memory)
        self._own_memory = block is not None and size >= WORKSPACE and ctypes.sizeof(block) >= WORKSPACE

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.engine.get_tensor_mode(name) != TensorIOMode.INPUT:
            return False
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            self.engine.logger.log(ILogger.ERROR, f"{name}: {shape} is not within the profile")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine._names or memory not in WORLD.cuda.device:
            return False
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine._inputs if name not in self._shapes and self.engine.dynamic]

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, cuda = self.engine, WORLD.cuda
        capturing = stream_handle in cuda.capturing
        ready = self._own_memory and set(self._addresses) == set(engine._names) and not self.infer_shapes()
        if WORLD.refuse or not ready or (capturing and not self._warm):
            engine.logger.log(ILogger.ERROR, "Error Code 3: API Usage Error (not everything is set)")
            return False
        self._warm = True
        return cuda.enqueue(stream_handle, self._execute)

    def _execute(self) -> None:
        feed = {}
        for name, value in self.engine._inputs.items():
            shape = self._shapes.get(name, tuple(value.shape))
            dtype = np.dtype(nptype(DataType(value.type)))
            feed[name] = self._view(name, shape, dtype).copy()
        for name, result in zip(self.engine._outputs, self.engine.session.run(None, feed), strict=True):
            self._view(name, result.shape, result.dtype)[...] = result
        WORLD.executions += 1

    def _view(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        block = WORLD.cuda.device[self._addresses[name]]
        size = int(np.prod(shape)) * dtype.itemsize
        assert ctypes.sizeof(block) >= size, f"{name} needs {size} bytes"
        return np.frombuffer(memoryview(block).cast("B"), np.uint8, size).view(dtype).reshape(shape)
