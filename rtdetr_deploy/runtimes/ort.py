"""ONNX Runtime on the CPU, or on an NVIDIA GPU through its CUDA provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_deploy.errors import ArtifactError, MissingPackageError
from rtdetr_deploy.packages import install_command, require
from rtdetr_deploy.runtimes import Array, Device, TensorSpec
from rtdetr_deploy.runtimes.onnx_file import Graph, read_graph

_PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class OnnxRuntime:
    """One inference session; ONNX Runtime allocates the outputs of each call and hands them over."""

    def __init__(self, session: Any, version: str, name: str, device: Device, graph: Graph) -> None:
        self._session: Any = session
        self._file = self.file = name
        self.name = f"ONNX Runtime {version} ({device.upper()})"
        self.inputs = tuple(_spec(node, name) for node in session.get_inputs())
        self.outputs = tuple(
            replace(_spec(node, name), classes=graph.count_classes(node.name)) for node in session.get_outputs()
        )
        self.max_batch: int | None = None
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """See `Runtime.run`; raises `ArtifactError` after `close` or when the model refuses the arrays."""
        session = self._session
        if session is None:
            raise ArtifactError(f"{self._file} is closed; open it again with Predictor or open_runtime")
        try:
            results = session.run(self._output_names, dict(feed))
        except Exception as error:  # ONNX Runtime's exception types share no public base
            raise ArtifactError(f"{self._file} failed while running: {_first_line(error)}") from error
        return dict(zip(self._output_names, results, strict=True))

    def close(self) -> None:
        """See `Runtime.close`."""
        self._session = None


def open_model(path: Path, threads: int | None, device: Device | None) -> OnnxRuntime:
    """Open an `.onnx` file. Raises `ArtifactError` when ONNX Runtime can't load it or can't use `device`."""
    onnxruntime = require("onnxruntime", "running .onnx files", "cpu")
    device = device or "cpu"
    provider = _PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise MissingPackageError(
            f"this ONNX Runtime has no {provider}; for NVIDIA GPUs install onnxruntime-gpu instead of onnxruntime: "
            f"pip uninstall onnxruntime, then {install_command('gpu')}"
        )
    graph = read_graph(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Its threads would go on spinning after a call and take the cores from whatever comes next: another model called in
    # turn took 1.5 times as long. A model alone is as fast either way (docs/measurements.md).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if graph.dequantizes_to_half():
        # Its QDQ optimizer breaks INT8 that meets FP16: half of the detections were lost (docs/precision.md).
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exception types share no public base
        raise ArtifactError(f"{path.name} is not a loadable ONNX model: {_first_line(error)}") from error
    if session.get_providers()[0] != provider:  # ONNX Runtime goes on with the CPU when CUDA can't be started
        raise ArtifactError(f"{provider} could not be started; check the driver, or use device='cpu'")
    return OnnxRuntime(session, onnxruntime.__version__, path.name, device, graph)


def _spec(node: Any, name: str) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ArtifactError(f"{name} has {node.name} of type {node.type}, which is not supported")
    shape = tuple(axis if isinstance(axis, int) and axis > 0 else None for axis in node.shape)
    return TensorSpec(node.name, np.dtype(dtype), shape)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
