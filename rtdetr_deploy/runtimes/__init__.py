"""What runs a model file: one protocol, one module per runtime, chosen by name or by the file's suffix."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from rtdetr_deploy.artifacts.weights_file import CHECKPOINT_SUFFIXES
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
    "open_runtime",
]


@dataclass(frozen=True, kw_only=True)
class RuntimeModule:
    """A runtime: `suffixes` of the files that it opens, its `module` here, and the `extra` that holds its packages.

    With `folders` it opens folders too. Where `by_name_only`, nothing is opened with it unless it is asked for; `slots`
    and `blocking_sync` of `RuntimeOptions` are for those with `has_slots`. The
    module has `open_model(model: Path | bytes, options: RuntimeOptions) -> Runtime`.
    """

    suffixes: tuple[str, ...]
    module: str
    extra: str
    folders: bool = False
    by_name_only: bool = False
    has_slots: bool = False

    def opens(self, path: Path) -> bool:
        """Tell whether `path` is called like a file of this runtime, or is a folder that it opens."""
        return path.suffix.lower() in self.suffixes or (self.folders and path.is_dir())


RUNTIMES = {
    "onnxruntime": RuntimeModule(suffixes=(".onnx",), module="ort", extra="cpu"),
    "openvino": RuntimeModule(suffixes=(".xml", ".onnx"), module="ov", extra="openvino"),
    "tensorrt": RuntimeModule(suffixes=(".engine", ".plan"), module="trt.runtime", extra="tensorrt", has_slots=True),
    "torch": RuntimeModule(
        suffixes=CHECKPOINT_SUFFIXES, module="eager", extra="export", folders=True, by_name_only=True
    ),
}
"""Every runtime by name. A file is opened by the first that has its suffix, unless another one is named."""


def open_runtime(
    model: str | Path | bytes,
    runtime: str | None = None,
    options: RuntimeOptions | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
) -> Runtime:
    """Open a model file, or the content of one, with the `runtime` of that name, else with that of its suffix.

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
    if isinstance(model, (bytes, bytearray, memoryview)):
        model, name = bytes(model), runtime or "onnxruntime"
        if not model:
            raise ArtifactError("the model is empty: it has no bytes")
    else:
        model, name = _find_file(model, runtime)
    chosen, options = RUNTIMES[name], options or RuntimeOptions()
    if options.size is not None and not chosen.by_name_only:
        raise OptionError(f"`size` is for checkpoints; what {name} opens has its own")
    for field in ("slots", "blocking_sync"):
        if getattr(options, field) and not chosen.has_slots:
            raise OptionError(f"`{field}` is for TensorRT engines; {name} runs this model")
    with needed_for(f'`runtime="{name}"`', chosen.extra):
        module = import_module(f"{__name__}.{chosen.module}")
    return cast("Runtime", module.open_model(model, options))


def _find_file(model: str | Path, runtime: str | None) -> tuple[Path, str]:
    """Return the path of a model file that is there, and the name of the runtime that opens it."""
    if not isinstance(model, (str, Path)):
        raise OptionError(f"`model` is {model!r}, expected a file's path, or its content as bytes")
    if model == "":
        raise ArtifactError("the name of the model file is empty; is a shell variable not set?")
    path = Path(model)
    name = _default_runtime(path) if runtime is None else runtime
    if not RUNTIMES[name].opens(path):
        others = [other for other, known in RUNTIMES.items() if known.opens(path)]
        hint = f"`runtime` may be {' or '.join(others)} for it" if others else "no runtime opens such a file"
        known = ", ".join(RUNTIMES[name].suffixes)
        raise OptionError(f'`runtime="{name}"` opens {known}, not {path.name}; {hint}')
    opens_folder = RUNTIMES[name].folders and path.is_dir()
    if not opens_folder and require_file(path, ArtifactError) == 0:
        raise ArtifactError(f"{path} is empty; export the model again")
    return path, name


def _default_runtime(path: Path) -> str:
    """Return the runtime of a file for which none was named. Raises `ArtifactError` where there is none."""
    suffix = path.suffix.lower()
    name = next((name for name, known in RUNTIMES.items() if known.opens(path)), None)
    if name is not None and not RUNTIMES[name].by_name_only:
        return name
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder; name the model file in it")
    if name is not None:
        raise ArtifactError(
            f"can't run {path.name}: it is a checkpoint; export it first: rtdetr-export --weights {path.name} writes "
            f'an .onnx file (`runtime="{name}"` runs it as it is)'
        )
    found = f"{suffix} is not a model format known here" if suffix else "its name has no suffix"
    known = {suffix: None for entry in RUNTIMES.values() if not entry.by_name_only for suffix in entry.suffixes}
    raise ArtifactError(f"can't run {path.name}: {found}; expected one of: {', '.join(known)}")
