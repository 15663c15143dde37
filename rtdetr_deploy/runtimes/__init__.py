"""What runs a model file: one protocol, one module per runtime, chosen by name or by the file (see `table`)."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import cast

from rtdetr_deploy.errors import ArtifactError, OptionError
from rtdetr_deploy.files import require_file
from rtdetr_deploy.packages import needed_for
from rtdetr_deploy.runtimes.options import RuntimeOptions, check_threads
from rtdetr_deploy.runtimes.protocol import (
    Array,
    DeviceBatch,
    DeviceOutput,
    Feed,
    GpuRuntime,
    ParallelRuntime,
    PreprocessingRuntime,
    Preprocessor,
    Runtime,
    TensorSpec,
    TimedRuntime,
)
from rtdetr_deploy.runtimes.table import RUNTIMES, RuntimeModule, choose_runtime, find_runtimes, refuse_unused

__all__ = [
    "RUNTIMES",
    "Array",
    "DeviceBatch",
    "DeviceOutput",
    "Feed",
    "GpuRuntime",
    "ParallelRuntime",
    "PreprocessingRuntime",
    "Preprocessor",
    "Runtime",
    "RuntimeModule",
    "RuntimeOptions",
    "TensorSpec",
    "TimedRuntime",
    "check_threads",
    "choose_runtime",
    "open_runtime",
]


def open_runtime(
    model: str | Path | bytes,
    runtime: str | None = None,
    options: RuntimeOptions | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
) -> Runtime:
    """Open a model file, or the content of one, with the `runtime` of that name, else with what `choose_runtime` says.

    Content (`bytes`) is that of an ONNX file, or for `runtime="tensorrt"` that of an engine. `runtime="torch"` opens
    checkpoints. `threads` and `device` are version 0.1's way to give the fields of `options`.

    Raises `ArtifactError` when the file is missing, is not a model, has an unknown suffix, or can't run on the device,
    `CheckpointError` for what is not a checkpoint, `DeviceError` when a device can't be used, `MissingPackageError`
    when the runtime's package is not installed, and `OptionError` for other arguments and what the runtime can't use.
    """
    old = {name: value for name, value in (("threads", threads), ("device", device)) if value is not None}
    if options is not None and (old or not isinstance(options, RuntimeOptions)):
        told = "threads and device belong into it" if old else "expected RuntimeOptions(...)"
        raise OptionError(f"`options` is {options!r}; {told}")
    if old:
        warnings.warn(
            f"{' and '.join(old)} of open_runtime: give them as options=RuntimeOptions(...) now",
            FutureWarning,
            stacklevel=2,
        )
        options = RuntimeOptions(**old)  # type: ignore[arg-type]
    if runtime is not None and runtime not in RUNTIMES:
        raise OptionError(f"`runtime` is {runtime!r}, expected one of {', '.join(RUNTIMES)}")
    options = options or RuntimeOptions()
    if isinstance(model, (bytes, bytearray, memoryview)):
        model = bytes(model)
        if not model:
            raise ArtifactError("the model is empty: it has no bytes")
    else:
        model = _find_file(model, runtime)
    name = runtime or choose_runtime(model, options)
    refuse_unused(name, options)
    chosen = RUNTIMES[name]
    with needed_for(f'`runtime="{name}"`', chosen.extra):
        module = import_module(f"{__name__}.{chosen.module}")
    return cast("Runtime", module.open_model(model, options))


def _find_file(model: str | Path, runtime: str | None) -> Path:
    """Return the path of a model file that is there, and that the runtime, if one is named, opens."""
    if not isinstance(model, (str, Path)):
        raise OptionError(f"`model` is {model!r}, expected a file's path, or its content as bytes")
    if model == "":
        raise ArtifactError("the name of the model file is empty; is a shell variable not set?")
    path = Path(model)
    if runtime is None:
        find_runtimes(path)
    elif not RUNTIMES[runtime].opens(path):
        others = [other for other, known in RUNTIMES.items() if known.opens(path)]
        hint = f"`runtime` may be {' or '.join(others)} for it" if others else "no runtime opens such a file"
        known = ", ".join(RUNTIMES[runtime].suffixes)
        raise OptionError(f'`runtime="{runtime}"` opens {known}, not {path.name}; {hint}')
    opens_folder = runtime is not None and RUNTIMES[runtime].folders and path.is_dir()
    if not opens_folder and require_file(path, ArtifactError) == 0:
        raise ArtifactError(f"{path} is empty; export the model again")
    return path
