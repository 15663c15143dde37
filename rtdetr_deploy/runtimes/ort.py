"""ONNX Runtime on the CPU, or on an NVIDIA GPU through its CUDA provider."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np

from rtdetr_deploy.artifacts.metadata import read_metadata
from rtdetr_deploy.errors import ArtifactError, MissingPackageError
from rtdetr_deploy.packages import install_command, require
from rtdetr_deploy.runtimes.cores import default_threads, usable_cores
from rtdetr_deploy.runtimes.feed import check_feed, closed
from rtdetr_deploy.runtimes.onnx_file import Graph, read_graph
from rtdetr_deploy.runtimes.options import MAX_SLOTS, RuntimeOptions, cpu_or_cuda
from rtdetr_deploy.runtimes.processor import instruction_sets
from rtdetr_deploy.runtimes.protocol import Array, Feed, TensorSpec

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class OnnxRuntime:
    """One inference session; see `ParallelRuntime`.

    ONNX Runtime allocates the outputs of each call and hands them over. A call runs in its caller's thread, with the
    help of the session's own.
    """

    arithmetic = "fp32"

    def __init__(
        self, session: Any, file: str, name: str, graph: Graph, slots: int = 1, *, waits: bool = False
    ) -> None:
        self._session: Any = session
        self.slots = slots
        self._turns = BoundedSemaphore(slots) if waits else nullcontext()
        self.file, self.name = file, name
        self.inputs = tuple(_spec(node, file) for node in session.get_inputs())
        self.outputs = tuple(
            replace(_spec(node, file), classes=graph.count_classes(node.name)) for node in session.get_outputs()
        )
        self.min_batch, self.max_batch = 1, None
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self.info = read_metadata(self.metadata, file)
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, feed: Feed) -> dict[str, Array]:
        """See `Runtime.run`; raises `ArtifactError` when ONNX Runtime fails, too."""
        session = self._session
        if session is None:
            raise closed(self.file)
        arrays = check_feed(feed, self.inputs, self.file)
        try:
            with self._turns:
                results = session.run(self._output_names, arrays)
        except Exception as error:  # ONNX Runtime's exception types share no public base
            raise ArtifactError(f"{self.file} failed while running: {_first_line(error)}") from error
        return dict(zip(self._output_names, results, strict=True))

    def run_in_each_slot(self, feed: Feed) -> None:
        """See `ParallelRuntime.run_in_each_slot`; what a first call prepares is the session's, so once is enough."""
        self.run(feed)

    def close(self) -> None:
        """See `Runtime.close`."""
        self._session = None


def open_model(model: Path | bytes, options: RuntimeOptions) -> OnnxRuntime:
    """Open an `.onnx` file, or the content of one, on "cpu" (default), "cuda" or "cuda:N".

    Raises `ArtifactError` when ONNX Runtime can't load it or can't start the device, `MissingPackageError` where the
    package that is installed has no CUDA, `OptionError` for other devices.
    """
    onnxruntime = require("onnxruntime", "running .onnx files", "cpu")
    kind, number = cpu_or_cuda(options.device or "cpu", "ONNX Runtime")
    provider = _PROVIDERS[kind]
    if provider not in onnxruntime.get_available_providers():
        raise MissingPackageError(
            f"this ONNX Runtime has no {provider}; for NVIDIA GPUs install onnxruntime-gpu instead of onnxruntime: "
            f"pip uninstall onnxruntime, then {install_command('gpu')}"
        )
    file = model.name if isinstance(model, Path) else "the ONNX model"
    graph = read_graph(model)
    slots = _count_slots(options)
    settings = session_options(options, graph, slots)
    chosen = provider if number is None else (provider, {"device_id": number})
    content = str(model) if isinstance(model, Path) else model
    try:
        session = onnxruntime.InferenceSession(content, settings, providers=[chosen])
    except Exception as error:  # ONNX Runtime's exception types share no public base
        raise ArtifactError(f"{file} is not a loadable ONNX model: {_first_line(error)}") from error
    if session.get_providers()[0] != provider:  # ONNX Runtime goes on with the CPU when CUDA can't be started
        raise ArtifactError(f'{provider} could not be started; check the driver, or use `device="cpu"`')
    waits = options.slots is not None or slots > 1
    device = kind.upper() if number is None else f"{kind.upper()}:{number}"
    return OnnxRuntime(session, file, f"ONNX Runtime {onnxruntime.__version__} ({device})", graph, slots, waits=waits)


def _count_slots(options: RuntimeOptions) -> int:
    """Return how many calls run side by side: by default one, and for throughput one per thread."""
    if options.slots is not None or options.hint != "throughput":
        return options.slots or 1
    return min(MAX_SLOTS, options.threads or usable_cores())


def session_options(options: RuntimeOptions, graph: Graph, slots: int = 1) -> Any:
    """Return ONNX Runtime's `SessionOptions` for a file with this `graph`, for `slots` calls that run side by side.

    What measures a file in a session of its own takes them from here, so that it measures what a Predictor runs.
    Raises `OptionError` for devices that ONNX Runtime doesn't have.
    """
    onnxruntime = require("onnxruntime", "running .onnx files", "cpu")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    if cpu_or_cuda(options.device or "cpu", "ONNX Runtime")[0] == "cpu":
        # Without it a call takes 35 MB less (R18 at 640x640), and as long: it would keep room for a whole call's
        # tensors besides what the first call used (docs/pipeline.md). On a GPU this was not measured.
        settings.enable_mem_pattern = False
    if not options.spinning:
        # Threads that wait for their part of a call by spinning take the cores from other work, and that work from the
        # call: beside one busy process it took 1.4 times as long, alone it is as fast either way (docs/pipeline.md).
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Its threads would go on spinning after a call and take the cores from whatever comes next: another model called in
    # turn took 1.5 times as long. A model alone is as fast either way (docs/measurements.md).
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if graph.dequantizes_to_half():
        # Its QDQ optimizer breaks INT8 that meets FP16: half of the detections were lost (docs/precision.md).
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if graph.dequantizes() and "VNNI" not in (instruction_sets() or ()):
        # Without VNNI its fast kernels add pairs of products in 16 bits, and saturate in silence. With VNNI they don't,
        # and these would take more than twice as long.
        settings.add_session_config_entry("session.x64quantprecision", "1")
    threads = options.threads or default_threads() or (usable_cores() if slots > 1 else None)
    if threads is not None:
        # Each call brings its caller's thread.
        settings.intra_op_num_threads = max(1, threads - slots + 1)
    return settings


def _spec(node: Any, file: str) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ArtifactError(f"{file} has {node.name} of type {node.type}, which is not supported")
    shape = tuple(axis if isinstance(axis, int) and axis > 0 else None for axis in node.shape)
    return TensorSpec(node.name, np.dtype(dtype), shape)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
