"""OpenVINO: `.xml` files, and `.onnx` files as they are, on Intel's devices and any x86 or ARM CPU.

Models are run in FP32 where they are FP32, unless something else is asked for: OpenVINO would round them to BF16 on
CPUs that have it, and to FP16 on GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_deploy.artifacts.metadata import read_metadata
from rtdetr_deploy.errors import ArtifactError, DeviceError
from rtdetr_deploy.packages import require
from rtdetr_deploy.runtimes.feed import check_feed, closed
from rtdetr_deploy.runtimes.onnx_file import Graph, read_graph
from rtdetr_deploy.runtimes.options import RuntimeOptions
from rtdetr_deploy.runtimes.ov_precision import keep_fp32
from rtdetr_deploy.runtimes.ov_settings import (
    choose_precision,
    count_slots,
    find_device,
    make_settings,
    read_arithmetic,
)
from rtdetr_deploy.runtimes.ov_xml import SUFFIX, Weights, read_xml, text_entries
from rtdetr_deploy.runtimes.protocol import Array, Feed, TensorSpec
from rtdetr_deploy.runtimes.slots import Slots

_DTYPES = (np.float32, np.float16, np.float64, np.uint8, np.int32, np.int64)


class Loaded:
    """A model as it was read, before it is compiled: its ports, and what is stored with it."""

    def __init__(self, openvino: Any, core: Any, model: Path | bytes) -> None:
        """Read a file or the content of an ONNX file. Raises `ArtifactError`."""
        self.file = model.name if isinstance(model, Path) else "the ONNX model"
        self.weights: Weights | None = None
        graph: Graph | None = None
        try:
            if isinstance(model, Path) and model.suffix.lower() == SUFFIX:
                self.model, self.weights = read_xml(openvino, core, model)
            else:
                graph = read_graph(model)
                self.model = core.read_model(str(model) if isinstance(model, Path) else model)
        except RuntimeError as error:
            raise ArtifactError(f"{self.file} can't be loaded by OpenVINO: {_last_line(error)}") from error
        self.metadata: Mapping[str, str] = text_entries(self.model) if graph is None else graph.metadata
        self.info = read_metadata(self.metadata, self.file)
        self._graph = graph

    def compile(self, core: Any, device: str, settings: Mapping[str, Any]) -> Any:
        """Return the compiled model. Raises `ArtifactError`."""
        try:
            compiled = core.compile_model(self.model, device, dict(settings))
        except RuntimeError as error:
            raise ArtifactError(f"{self.file} can't be loaded by OpenVINO on {device}: {_last_line(error)}") from error
        if self.weights is not None:
            self.weights.forget()
        return compiled

    def inputs(self, compiled: Any) -> tuple[TensorSpec, ...]:
        """Return what the compiled model takes."""
        pairs = zip(compiled.inputs, self.model.inputs, strict=True)
        return tuple(_spec(port, named, self.file) for port, named in pairs)

    def outputs(self, compiled: Any) -> tuple[TensorSpec, ...]:
        """Return what it returns; compiling renames outputs after inner nodes, and keeps their order."""
        pairs = zip(compiled.outputs, self.model.outputs, strict=True)
        specs = [_spec(port, named, self.file) for port, named in pairs]
        graph = self._graph
        return tuple(spec if graph is None else replace(spec, classes=graph.count_classes(spec.name)) for spec in specs)


class OpenVinoRuntime:
    """A compiled model; see `ParallelRuntime`. Each slot is an inference request; outputs are copies.

    `arithmetic` is what the compiled model says that it computes in: "fp32", "bf16" or "fp16", or None where several
    devices differ.
    """

    def __init__(self, loaded: Loaded, compiled: Any, name: str, slots: int) -> None:
        self.arithmetic = read_arithmetic(compiled)
        self.slots = slots
        self.file = loaded.file
        self.name = name if self.arithmetic in ("fp32", None) else f"{name[:-1]}, {self.arithmetic.upper()})"
        self.inputs, self.outputs = loaded.inputs(compiled), loaded.outputs(compiled)
        self.min_batch, self.max_batch = 1, None
        self.metadata, self.info = loaded.metadata, loaded.info
        self._weights = loaded.weights  # the compiled model reads them
        self._compiled: Any = compiled
        self._requests: Slots[Any] | None = Slots([compiled.create_infer_request() for _ in range(slots)])

    def run(self, feed: Feed) -> dict[str, Array]:
        """See `Runtime.run`; raises `ArtifactError` when OpenVINO fails, too."""
        return self._run(feed, self._open(), None)

    def run_in_each_slot(self, feed: Feed) -> None:
        """See `ParallelRuntime.run_in_each_slot`; errors are those of `run`."""
        requests = self._open()
        for request in requests:
            self._run(feed, requests, request)

    def _run(self, feed: Feed, requests: Slots[Any], one: Any) -> dict[str, Array]:
        """Run in one of the requests, or in the first that is free."""
        arrays = check_feed(feed, self.inputs, self.file)
        with requests.take(one) as request:
            try:
                results = request.infer([arrays[spec.name] for spec in self.inputs], share_inputs=True)
            except RuntimeError as error:
                raise ArtifactError(f"{self.file} failed while running: {_last_line(error)}") from error
            return {spec.name: results[index] for index, spec in enumerate(self.outputs)}

    def _open(self) -> Slots[Any]:
        requests = self._requests
        if requests is None:
            raise closed(self.file)
        return requests

    def close(self) -> None:
        """See `Runtime.close`."""
        self._compiled = self._requests = None


def open_model(model: Path | bytes, options: RuntimeOptions) -> OpenVinoRuntime:
    """Open an `.xml` file with the `.bin` file beside it, an `.onnx` file, or the content of one.

    Raises `ArtifactError` when OpenVINO can't load it, `DeviceError` for devices that are not there and for arithmetic
    that they don't have, `OptionError` for devices that it doesn't know, and for threads of devices other than the CPU,
    `OutputError` for a cache that can't be written, `MissingPackageError` for lower precisions in versions of OpenVINO
    whose marks for what stays in FP32 are not known.
    """
    openvino = require("openvino", "running models with OpenVINO", "openvino")
    core = openvino.Core()
    device = find_device(options.device or "CPU", core.available_devices)
    loaded = Loaded(openvino, core, model)
    compiled = compile_as_asked(loaded, core, device, options)
    version = openvino.__version__.partition("-")[0]
    return OpenVinoRuntime(loaded, compiled, f"OpenVINO {version} ({device})", count_slots(options, compiled))


def compile_as_asked(
    loaded: Loaded, core: Any, device: str, options: RuntimeOptions, extra: Mapping[str, Any] | None = None
) -> Any:
    """Return the compiled model, with the arithmetic, hint, threads and cache that `options` ask for.

    `extra` are further settings of OpenVINO: what measures a file in a model of its own compiles it here, so that it
    measures what a Predictor runs. Raises what `open_model` does once the file is loaded.
    """
    precision = choose_precision(options, device, core, loaded.info)
    if precision != "fp32" and loaded.info is not None:  # None: an NPU's own, which is FP16
        keep_fp32(loaded.model, loaded.info.fp32_nodes)
    compiled = loaded.compile(core, device, {**make_settings(options, device, precision), **(extra or {})})
    if precision is not None and read_arithmetic(compiled) != precision:
        found = read_arithmetic(compiled) or "something else"
        raise DeviceError(f"{loaded.file} was to be computed in {precision}, but {device} computes in {found}")
    return compiled


def _spec(port: Any, named: Any, file: str) -> TensorSpec:
    """Return what a port takes or gives, under the name that it has in the model's file."""
    name = named.any_name if named.names else named.node.friendly_name
    dtype = np.dtype(port.element_type.to_dtype()) if port.element_type.get_type_name() != "bf16" else None
    if dtype not in _DTYPES or port.partial_shape.rank.is_dynamic:
        kind = f"{port.element_type.get_type_name()}{port.partial_shape}"
        raise ArtifactError(f"{file} has {name} of type {kind}, which is not supported")
    shape = tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape)
    return TensorSpec(name, np.dtype(dtype), shape)


def _last_line(error: Exception) -> str:
    """Return what was wrong; the lines above it name places in OpenVINO's sources."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
