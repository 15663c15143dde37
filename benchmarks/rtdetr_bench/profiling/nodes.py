"""Milliseconds of each node of a model, as ONNX Runtime or OpenVINO ran it: their own profiles, medians over calls."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, cast

import numpy as np

from rtdetr_deploy.errors import ArtifactError, RtdetrError
from rtdetr_deploy.packages import require
from rtdetr_deploy.runtimes.onnx_file import read_graph
from rtdetr_deploy.runtimes.options import Arithmetic, RuntimeOptions

WARMUP = 3
_KERNEL = "_kernel_time"
_FOLDED = "undef"
"""What OpenVINO calls the kernel of a node that another one computes."""


@dataclass(frozen=True)
class NodeTime:
    """A node as the runtime ran it: `name` of (one of) the nodes it was made of, `kernel` where the runtime tells."""

    name: str
    operator: str
    kernel: str
    ms: float


@dataclass(frozen=True)
class Profile:
    """Nodes in the order in which they first ran, and `call`, the median of whole calls, in milliseconds."""

    runtime: str
    nodes: tuple[NodeTime, ...]
    call: float


def profile(path: Path, runtime: str, runs: int, *, threads: int | None = None, precision: str = "fp32") -> Profile:
    """Return what the nodes of `path` took in `runs` calls with noise as images; in OpenVINO with `precision`.

    It is opened as the Predictor opens it, with the runtime's profile switched on. Raises `ArtifactError` for a file
    that the runtime can't load, or whose input sizes are open but for the batch, and `DeviceError` for BF16 where the
    processor doesn't have it.
    """
    try:
        if runtime == "openvino":
            return _profile_openvino(path, runs, threads, precision)
        return _profile_onnxruntime(path, runs, threads)
    except RtdetrError:
        raise
    except Exception as error:  # runtimes raise types of their own
        line = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{path.name} can't be profiled in {runtime}: {line}") from error


def _profile_onnxruntime(path: Path, runs: int, threads: int | None) -> Profile:
    onnxruntime = require("onnxruntime", "profiling in ONNX Runtime", "cpu")
    from rtdetr_deploy.runtimes.ort import session_options

    with TemporaryDirectory() as folder:
        settings = session_options(RuntimeOptions(threads=threads), read_graph(path))
        settings.enable_profiling, settings.profile_file_prefix = True, str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        dtypes = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64}
        feed = {
            node.name: _noise(path, [n if isinstance(n, int) else None for n in node.shape], dtypes.get(node.type))
            for node in session.get_inputs()
        }
        calls = []
        for _ in range(WARMUP + runs):
            start = perf_counter()
            session.run(None, feed)
            calls.append((perf_counter() - start) * 1e3)
        events = json.loads(Path(session.end_profiling()).read_text())
    times = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            times[event["name"].removesuffix(_KERNEL), event["args"]["op_name"], ""].append(event["dur"] / 1e3)
    return Profile(f"ONNX Runtime {onnxruntime.__version__}", _medians(times.items(), runs), _median(calls))


def _profile_openvino(path: Path, runs: int, threads: int | None, precision: str) -> Profile:
    openvino = require("openvino", "profiling in OpenVINO", "openvino")
    from rtdetr_deploy.runtimes.ov import Loaded, compile_as_asked

    core = openvino.Core()
    loaded = Loaded(openvino, core, path)
    options = RuntimeOptions(threads=threads, precision=cast("Arithmetic", precision))
    request = compile_as_asked(loaded, core, "CPU", options, {"PERF_COUNT": True}).create_infer_request()
    feed = [
        _noise(
            path, [n.get_length() if n.is_static else None for n in port.partial_shape], port.element_type.to_dtype()
        )
        for port in loaded.model.inputs
    ]
    calls, times = [], defaultdict(list)
    for _ in range(WARMUP + runs):
        start = perf_counter()
        request.infer(feed)
        calls.append((perf_counter() - start) * 1e3)
        for node in request.get_profiling_info():
            if node.exec_type != _FOLDED:
                key = node.node_name, node.node_type, node.exec_type
                times[key].append(node.real_time.total_seconds() * 1e3)
    version = openvino.__version__.partition("-")[0]
    return Profile(f"OpenVINO {version}, {precision.upper()}", _medians(times.items(), runs), _median(calls))


def _noise(path: Path, shape: list[int | None], dtype: Any) -> Any:
    """Return an input: noise for images, the input size for a size; an open batch is one image."""
    sizes = [1 if index == 0 and size is None else size for index, size in enumerate(shape)]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise ArtifactError(f"{path.name} leaves its input size open; export the model for a fixed input size")
    random = np.random.default_rng(0)
    if dtype is not None and np.dtype(dtype).kind in "iu":
        return random.integers(1, 256, known, dtype=np.dtype(dtype))
    return random.random(known, dtype=np.float32)


def _medians(times: Iterable[tuple[tuple[str, str, str], list[float]]], runs: int) -> tuple[NodeTime, ...]:
    return tuple(NodeTime(*key, _median(values[-runs:])) for key, values in times)


def _median(values: list[float]) -> float:
    return float(np.median(values))
