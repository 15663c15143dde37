"""Checks our TensorRT code against the real Python bindings of several versions (`make tensorrt-check`).

TensorRT's libraries are not on PyPI, but its Python bindings are. They import over empty stand-ins of the libraries, so
that every class, signature and enumeration is the real one, though nothing can be built or run. From each version stubs
are generated, and mypy checks our files against them. A wrong call planted into a copy must be found, else the check
itself is broken.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import importlib
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS: tuple[str, ...] = ("10.13.3.9", "10.16.1.11", "11.4.0.106")
if sys.version_info < (3, 13):
    VERSIONS = ("10.3.0", *VERSIONS)  # JetPack 6's; later Pythons have no bindings of it
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins",
)  # fmt: skip
PARTS = ("runtime", "slot", "batch_context", "bindings", "contexts", "logger")
CHECKED = [ROOT / "rtdetr_deploy" / "runtimes" / "trt" / f"{part}.py" for part in PARTS]
CHECKED += [ROOT / "export" / "rtdetr_export" / "trt" / f"{part}.py" for part in ("build", "builder")]
PLANTED = {
    "an unknown method": ("execute_async_v3(", "execute_async_v4("),
    "a missing argument": ("execute_async_v3(self._shared.stream.handle)", "execute_async_v3()"),
    "an argument of another type": ("set_tensor_address, binding.name,", "set_tensor_address, binding,"),
    "a name that is not there": ("trt.TensorIOMode.INPUT,", "trt.TensorIOMode.INCOMING,"),
}


def main() -> int:
    """Run the check, or one of its steps in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tensorrt", help="folder for bindings and stubs")
    parser.add_argument("--stubs-of", metavar="VERSION", help="write the stubs of this version")
    parser.add_argument("--use", metavar="VERSION", help="use our runtime's parts with the bindings of this version")
    arguments = parser.parse_args()
    if arguments.stubs_of:
        write_stubs(arguments.work / arguments.stubs_of, arguments.stubs_of)
        return 0
    if arguments.use:
        use_bindings(arguments.work / arguments.use, arguments.use)
        return 0
    for version in VERSIONS:
        folder = arguments.work / version
        fetch(folder, version)
        for step in ("--stubs-of", "--use"):
            run([sys.executable, __file__, "--work", str(arguments.work), step, version])
        for path in CHECKED:
            problems = check_types(folder, path)
            if problems:
                print(f"TensorRT {version}, {path.name}:\n{problems}")
                return 1
        print(f"TensorRT {version}: {', '.join(path.name for path in CHECKED)} fit the bindings")
    return plant(arguments.work / VERSIONS[-1])


def run(command: list[str]) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True)


def fetch(folder: Path, version: str) -> None:
    """Download and unpack the bindings, and compile the stand-ins."""
    if (folder / "bindings").exists() and (folder / "libraries").exists():
        return
    package = f"tensorrt-cu12-bindings=={version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run([*pip, "--dest", str(folder / "wheel"), package])
    (wheel,) = (folder / "wheel").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "bindings")
    libraries = folder / "libraries"
    libraries.mkdir(exist_ok=True)
    source = libraries / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    major = version.partition(".")[0]
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(libraries / name), str(source)])


def load(folder: Path, version: str) -> None:
    """Make `import tensorrt` find the real bindings in this process."""
    major = version.partition(".")[0]
    for library in LIBRARIES:
        ctypes.CDLL(str(folder / "libraries" / f"lib{library}.so.{major}"), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder / "bindings"))
    sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")


def write_stubs(folder: Path, version: str) -> None:
    """Generate stubs of the bindings as a package called `tensorrt`."""
    load(folder, version)
    from pybind11_stubgen import main as generate

    generate(["tensorrt_bindings", "-o", str(folder / "generated"), "--ignore-all-errors"])
    target = folder / "stubs" / "tensorrt"
    target.mkdir(parents=True, exist_ok=True)
    for path in (folder / "generated" / "tensorrt_bindings").glob("*.pyi"):
        text = path.read_text().replace("tensorrt_bindings.tensorrt", "tensorrt.tensorrt")
        text = re.sub(r"^(from|import) tensorrt_bindings", r"\1 tensorrt", text, flags=re.MULTILINE)
        (target / path.name).write_text("\n".join(repair(line) for line in text.splitlines()) + "\n")


def repair(line: str) -> str:
    """Return a `def` line of the bindings that isn't Python (a parameter called `in`) with any arguments instead."""
    found = re.match(r"(\s*)def (\w+)\(.*\).*:", line)
    if found is None:
        return line
    try:
        ast.parse(line.strip() + " ...")
    except SyntaxError:
        return f"{found[1]}def {found[2]}(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:"
    return line


def check_types(folder: Path, path: Path) -> str:
    """Return mypy's complaints about our file against the stubs; empty when it fits."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-warn-unused-ignores", "--follow-imports=silent"]
    command += ["--allow-untyped-calls"]  # trt.nptype has no annotations
    command += ["--cache-dir", str(folder / "cache"), str(path)]
    environment = {**os.environ, "MYPYPATH": str(folder / "stubs")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stdout + result.stderr


def plant(folder: Path) -> int:
    """Return 0 when every planted mistake is found."""
    copy = folder / "planted.py"
    for what, (right, wrong) in PLANTED.items():
        original = next((text for path in CHECKED if right in (text := path.read_text())), None)
        assert original is not None, f"nothing to replace: {right}"
        copy.write_text(original.replace(right, wrong))
        problems = check_types(folder, copy)
        copy.unlink()
        if "planted.py" not in problems:
            print(f"the check does not find {what} ({wrong}): {problems or 'mypy is content'}")
            return 1
    print(f"{len(PLANTED)} planted mistakes were found")
    return 0


def use_bindings(folder: Path, version: str) -> None:
    """Use what works without the libraries: our subclasses, and the names that are looked up at run time."""
    load(folder, version)
    import tensorrt as trt

    from rtdetr_deploy import DeviceError
    from rtdetr_deploy.runtimes.trt import runtime as tensorrt_runtime
    from rtdetr_deploy.runtimes.trt.logger import get_logger, mark, messages_since
    from rtdetr_export.trt.builder import make_monitor

    assert trt.__version__ == version, trt.__version__
    since, logger = mark(), get_logger()
    assert logger is get_logger()
    assert isinstance(logger, trt.ILogger)
    logger.log(trt.ILogger.ERROR, "out of\nmemory")
    logger.log(trt.ILogger.VERBOSE, "chatter")
    told = [(message.severity, message.text) for message in messages_since(since)]
    assert told == [("ERROR", "out of\nmemory")], told
    steps: list[tuple[str, int, int]] = []
    stop = threading.Event()
    monitor = make_monitor(lambda *phase: steps.append(phase), stop)
    assert isinstance(monitor, trt.IProgressMonitor)
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0)
    stop.set()
    assert not monitor.step_complete("build", 1)
    assert steps == [("build", 0, 2), ("build", 1, 2), ("build", 2, 2)], steps
    assert 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) > 0
    assert trt.nptype(trt.DataType.FLOAT).__name__ == "float32"
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED is not None
    failure = ""
    try:
        tensorrt_runtime.start(trt.Runtime, logger)
    except DeviceError as error:  # the stand-in returns no runtime, as TensorRT does where CUDA can't start
        failure = str(error)
    assert "factory function returned nullptr" in failure, failure


if __name__ == "__main__":
    sys.exit(main())
