"""The runtimes by name, and which of them opens a file for which none was named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rtdetr_deploy.artifacts.weights_file import CHECKPOINT_SUFFIXES
from rtdetr_deploy.errors import ArtifactError, OptionError
from rtdetr_deploy.packages import install_commands
from rtdetr_deploy.runtimes.onnx_file import read_graph
from rtdetr_deploy.runtimes.options import RuntimeOptions
from rtdetr_deploy.runtimes.processor import instruction_sets
from rtdetr_deploy.words import listed


@dataclass(frozen=True, kw_only=True)
class RuntimeModule:
    """A runtime: `suffixes` of the files that it opens, its `module` here, and the `extra` that holds its packages.

    `package` is what must be there to import. With `folders` it opens folders too. Where `by_name_only`, nothing is
    opened with it unless it is asked for. `options` are the fields of `RuntimeOptions` that it takes besides device and
    threads, and `precisions` the values of `precision`. The module has
    `open_model(model: Path | bytes, options: RuntimeOptions) -> Runtime`.
    """

    suffixes: tuple[str, ...]
    module: str
    extra: str
    package: str
    options: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    folders: bool = False
    by_name_only: bool = False

    def opens(self, path: Path) -> bool:
        """Tell whether `path` is called like a file of this runtime, or is a folder that it opens."""
        return path.suffix.lower() in self.suffixes or (self.folders and path.is_dir())


RUNTIMES: Mapping[str, RuntimeModule] = {
    "onnxruntime": RuntimeModule(
        suffixes=(".onnx",),
        module="ort",
        extra="cpu",
        package="onnxruntime",
        options=("hint", "slots", "spinning"),
        precisions=("fp32", "auto"),
    ),
    "openvino": RuntimeModule(
        suffixes=(".xml", ".onnx"),
        module="ov",
        extra="openvino",
        package="openvino",
        options=("hint", "cache", "slots"),
        precisions=("fp32", "bf16", "fp16", "auto"),
    ),
    "tensorrt": RuntimeModule(
        suffixes=(".engine", ".plan"),
        module="trt.runtime",
        extra="tensorrt",
        package="tensorrt",
        options=("slots", "blocking_sync"),
    ),
    "torch": RuntimeModule(
        suffixes=CHECKPOINT_SUFFIXES,
        module="eager",
        extra="export",
        package="torch",
        options=("size",),
        precisions=("fp32", "auto"),
        folders=True,
        by_name_only=True,
    ),
}
"""Every runtime by name."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What runs `.onnx` files, with INT8 in them or without, on processors that have the instruction set `needs`.

    `ratios` are OpenVINO's times over those of ONNX Runtime, both with the threads that they choose: the shipped R18 at
    288x288, and where there are three, R18 and R50 at 640x640.
    """

    int8: bool
    needs: str
    runtime: str
    ratios: tuple[float, ...]


DECISIONS = (
    Decision(int8=True, needs="VNNI", runtime="openvino", ratios=(0.32,)),
    Decision(int8=True, needs="AVX2", runtime="openvino", ratios=(0.51,)),
    Decision(int8=False, needs="AVX-512", runtime="onnxruntime", ratios=(0.82, 0.90, 0.94)),
    Decision(int8=False, needs="AVX2", runtime="onnxruntime", ratios=(0.90, 0.95, 0.93)),
)
"""The first that fits counts. Measured with ONNX Runtime 1.31.1 and OpenVINO 2026.4.1 on two cores of an AMD EPYC.

Files without INT8 stay with ONNX Runtime although OpenVINO is faster: it takes 0.3 s longer to open an `.onnx` file,
its peak (R18 at 640x640: 400 MB) is above this project's limit of 350 MB, and ONNX Runtime's (319 to 357 MB) is near it
(docs/pipeline.md). OpenVINO's own `.xml` files stay below it.
"""
UNMEASURED = "onnxruntime"


def choose_runtime(model: Path | bytes, options: RuntimeOptions) -> str:
    """Return the name of the runtime of a model file, or of the content of an ONNX file, for which none was named.

    Of several that are installed it is the one that `options` need, else the one that was measured to be the better
    for such a file on such a processor. Raises `ArtifactError` as `find_runtimes`, and for damaged ONNX files.
    """
    names = find_runtimes(model) if isinstance(model, Path) else ["onnxruntime", "openvino"]
    if len(names) > 1:
        names = [name for name in names if find_spec(RUNTIMES[name].package) is not None] or names
    device = (options.device or "cpu").lower()
    needed = "onnxruntime" if device.startswith("cuda") else "openvino"
    if needed in names and (device != "cpu" or options.precision not in (None, "fp32")):
        return needed
    names = [name for name in names if not _unused(name, options)] or names
    return names[0] if len(names) == 1 else _measured(model)


def find_runtimes(path: Path) -> list[str]:
    """Return the names of the runtimes that open a file unasked. Raises `ArtifactError` where there are none."""
    found = [name for name, known in RUNTIMES.items() if known.opens(path)]
    unasked = [name for name in found if not RUNTIMES[name].by_name_only]
    if unasked:
        return unasked
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder; name the model file in it")
    if found:
        raise ArtifactError(
            f"can't run {path.name}: it is a checkpoint; export it first: rtdetr-export --weights {path.name} writes "
            f'an .onnx file (`runtime="{found[0]}"` runs it as it is)'
        )
    suffix = path.suffix.lower()
    told = f"{suffix} is not a model format known here" if suffix else "its name has no suffix"
    known = {suffix: None for entry in RUNTIMES.values() if not entry.by_name_only for suffix in entry.suffixes}
    raise ArtifactError(f"can't run {path.name}: {told}; expected one of: {', '.join(known)}")


def _measured(model: Path | bytes) -> str:
    """Return the runtime that was found to be the better for an ONNX file on this processor."""
    there, int8 = instruction_sets() or (), read_graph(model).dequantizes()
    fitting = (known.runtime for known in DECISIONS if known.needs in there and known.int8 == int8)
    return next(fitting, UNMEASURED)


def refuse_unused(name: str, options: RuntimeOptions) -> None:
    """Raise `OptionError` for the first of the options that the runtime of this name would ignore."""
    for field in _unused(name, options):
        if field == "size":
            raise OptionError(f"`size` is for checkpoints; what {name} opens has its own")
        value = f'="{options.precision}"' if field == "precision" else ""
        takers = [other for other, known in RUNTIMES.items() if _takes(known, field, options)]
        told = f"`{field}{value}` is for {listed(takers, 'and')}; {name} runs this model"
        missing = [RUNTIMES[other].extra for other in takers if find_spec(RUNTIMES[other].package) is None]
        if len(missing) == len(takers):
            told += f"; {takers[0]} is not installed: {install_commands(*missing)}"
        raise OptionError(told)


def _unused(name: str, options: RuntimeOptions) -> list[str]:
    """Return the names of the options that are given and that a runtime doesn't take."""
    fields = ("precision", "hint", "cache", "slots", "spinning", "blocking_sync", "size")
    given = [field for field in fields if getattr(options, field) not in (None, False)]
    return [field for field in given if not _takes(RUNTIMES[name], field, options)]


def _takes(runtime: RuntimeModule, field: str, options: RuntimeOptions) -> bool:
    return field in runtime.options or (field == "precision" and options.precision in runtime.precisions)
