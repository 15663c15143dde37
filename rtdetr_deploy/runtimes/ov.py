"""OpenVINO: `.xml` files, and `.onnx` files as they are, on Intel's devices and any x86 or ARM CPU.

On CPUs models are run in FP32 where they are FP32: OpenVINO would round them to BF16 where the CPU has it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_deploy.artifacts.metadata import read_metadata
from rtdetr_deploy.errors import ArtifactError, DeviceError, OptionError
from rtdetr_deploy.packages import require
from rtdetr_deploy.runtimes.feed import check_feed, closed
from rtdetr_deploy.runtimes.onnx_file import Graph, read_graph
from rtdetr_deploy.runtimes.options import RuntimeOptions
from rtdetr_deploy.runtimes.protocol import Array, Feed, TensorSpec

DEVICES = ("CPU", "GPU", "NPU")
COMBINED = ("AUTO", "MULTI", "HETERO")
"""Devices that stand for several ("AUTO:GPU,CPU"), or for OpenVINO's own choice ("AUTO")."""
_DTYPES = (np.float32, np.float16, np.float64, np.uint8, np.int32, np.int64)


class OpenVinoRuntime:
    """A compiled model. Each of several calls at once has an inference request of its own; outputs are copies."""

    def __init__(self, model: Any, compiled: Any, file: str, name: str, graph: Graph | None) -> None:
        self._compiled: Any = compiled
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self.file, self.name = file, name
        # Compiling renames outputs after inner nodes, and keeps their order.
        self.inputs = tuple(_spec(port, named, file) for port, named in zip(compiled.inputs, model.inputs, strict=True))
        outputs = [_spec(port, named, file) for port, named in zip(compiled.outputs, model.outputs, strict=True)]
        self.outputs = tuple(
            spec if graph is None else replace(spec, classes=graph.count_classes(spec.name)) for spec in outputs
        )
        self.min_batch, self.max_batch = 1, None
        self.metadata: Mapping[str, str] = _text_entries(model) if graph is None else graph.metadata
        self.info = read_metadata(self.metadata, file)

    def run(self, feed: Feed) -> dict[str, Array]:
        """See `Runtime.run`; raises `ArtifactError` when OpenVINO fails, too."""
        with self._request() as request:
            arrays = check_feed(feed, self.inputs, self.file)
            try:
                results = request.infer([arrays[spec.name] for spec in self.inputs], share_inputs=True)
            except RuntimeError as error:
                raise ArtifactError(f"{self.file} failed while running: {_last_line(error)}") from error
            return {spec.name: results[index] for index, spec in enumerate(self.outputs)}

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """Yield an idle inference request, made where there is none. Raises `ArtifactError` after `close`."""
        with self._lock:
            if self._compiled is None:
                raise closed(self.file)
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        try:
            yield request
        finally:
            with self._lock:
                if self._compiled is not None:
                    self._idle.append(request)

    def close(self) -> None:
        """See `Runtime.close`."""
        with self._lock:
            self._compiled = None
            self._idle.clear()


def open_model(model: Path | bytes, options: RuntimeOptions) -> OpenVinoRuntime:
    """Open an `.xml` file with the `.bin` file beside it, an `.onnx` file, or the content of one.

    Raises `ArtifactError` when OpenVINO can't load it, `DeviceError` for devices that are not there, `OptionError` for
    those that it doesn't know, and for threads of devices other than the CPU.
    """
    openvino = require("openvino", "running models with OpenVINO", "openvino")
    core = openvino.Core()
    device = _find_device(options.device or "CPU", core.available_devices)
    file = model.name if isinstance(model, Path) else "the ONNX model"
    xml = isinstance(model, Path) and model.suffix.lower() == ".xml"
    if isinstance(model, Path) and xml:
        _check_xml(model)
    graph = None if xml else read_graph(model)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"} if device == "CPU" else {}
    if options.threads is not None:
        if device != "CPU":
            raise OptionError(f"`threads` is for the CPU; leave it out for {device}")
        settings["INFERENCE_NUM_THREADS"] = int(options.threads)
    try:
        loaded = core.read_model(str(model) if isinstance(model, Path) else model)
        compiled = core.compile_model(loaded, device, settings)
    except RuntimeError as error:
        raise ArtifactError(f"{file} can't be loaded by OpenVINO on {device}: {_last_line(error)}") from error
    version = openvino.__version__.partition("-")[0]
    return OpenVinoRuntime(loaded, compiled, file, f"OpenVINO {version} ({device})", graph)


def _find_device(given: str, available: list[str]) -> str:
    """Return a device as OpenVINO spells it.

    Raises `OptionError` for one that OpenVINO doesn't know, `DeviceError` for one that is not there.
    """
    device = given.upper()
    first, _, listed = device.partition(":")
    for name in listed.split(",") if first in COMBINED and listed else [device]:
        kind = name.lstrip("-").partition("(")[0].partition(".")[0]
        if kind not in DEVICES + COMBINED:
            known = ", ".join(DEVICES + COMBINED)
            raise OptionError(f"`device` is {given!r}, but OpenVINO runs on {known}")
        if kind in DEVICES and not any(there.partition(".")[0] == kind for there in available):
            raise DeviceError(f"OpenVINO finds no {kind} here, only {', '.join(available)}; is its driver installed?")
    return device


def _check_xml(path: Path) -> None:
    """Raise `ArtifactError` for a file that is not XML: OpenVINO would try it as other formats and print about them."""
    with path.open("rb") as file:
        start = file.read(256)
    if not start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ArtifactError(f"{path.name} is not a model of OpenVINO: it is not XML")


def _spec(port: Any, named: Any, file: str) -> TensorSpec:
    """Return what a port takes or gives, under the name that it has in the model's file."""
    name = named.any_name if named.names else named.node.friendly_name
    dtype = np.dtype(port.element_type.to_dtype()) if port.element_type.get_type_name() != "bf16" else None
    if dtype not in _DTYPES or port.partial_shape.rank.is_dynamic:
        kind = f"{port.element_type.get_type_name()}{port.partial_shape}"
        raise ArtifactError(f"{file} has {name} of type {kind}, which is not supported")
    shape = tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape)
    return TensorSpec(name, np.dtype(dtype), shape)


def _text_entries(model: Any) -> dict[str, str]:
    """Return the text entries of an `.xml` file's `rt_info`, leaving out nested ones."""
    entries = {key: getattr(value, "value", None) for key, value in model.rt_info.items()}
    return {key: value for key, value in entries.items() if isinstance(value, str)}


def _last_line(error: Exception) -> str:
    """Return what was wrong; the lines above it name places in OpenVINO's sources."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
