"""What is known about a TensorRT engine: stored beside it, so that the engine stays a plain one.

`model.engine` is what `trtexec --loadEngine` accepts; `model.engine.json` says what it detects, and where it may run.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdetr_deploy.artifacts.hardware import HardwareCompatible, read_compatibility
from rtdetr_deploy.artifacts.metadata import ArtifactInfo, read_stored
from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.files import reason

if TYPE_CHECKING:
    from rtdetr_deploy.runtimes.trt.cuda import Gpu

FORMAT = 1
AMPERE = (8, 0)
"""The compute capability from which engines for "ampere+" run."""


@dataclass(frozen=True)
class EngineInfo:
    """Metadata of an engine file.

    `info` of the model; `tensorrt` version that built it; `gpu` name and compute `capability` ("7.5") of the device it
    was built on; `profile` minimum, optimum and maximum batch; SHA-256 of the ONNX file and of the engine;
    `version_compatible` and `hardware_compatible` as it was built; `accepted` where it was written in spite of a failed
    verification; `report` of its verification in words, with its problems where there are some.
    """

    info: ArtifactInfo
    tensorrt: str
    gpu: str
    capability: str
    profile: tuple[int, int, int]
    onnx_digest: str
    engine_digest: str
    version_compatible: bool = False
    hardware_compatible: HardwareCompatible = "none"
    accepted: bool = False
    report: str = ""

    def to_json(self) -> str:
        """Return the content of the file beside the engine."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({"format": FORMAT, **values, "info": self.info.to_stored()}, indent=1)


def sidecar_path(engine: Path) -> Path:
    """Return where the metadata of `engine` is stored."""
    return engine.with_name(engine.name + ".json")


def read_engine_info(engine: Path, content: bytes) -> EngineInfo | None:
    """Return what is stored beside the engine file with this `content`; None where nothing is.

    Raises `ArtifactError` when it is damaged, was written by a newer version, or belongs to another engine.
    """
    path = sidecar_path(engine)
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} can't be read: {reason(error)}; build the engine again") from error
    try:
        if stored["format"] > FORMAT:
            raise ArtifactError(f"{path} was written by a newer rtdetr-deploy; update this one")
        found = _read(stored, path.name)
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{path} does not describe an engine ({error!r}); build the engine again") from error
    if found.engine_digest != hashlib.sha256(content).hexdigest():
        raise ArtifactError(f"{path.name} belongs to an engine other than {engine.name}; build it again, or delete it")
    return found


def _read(stored: dict[str, Any], name: str) -> EngineInfo:
    """Return the stored values; what files of earlier versions lack has its default."""
    values = {
        item.name: stored[item.name] for item in fields(EngineInfo) if item.default is MISSING or item.name in stored
    }
    lowest, best, highest = (int(batch) for batch in values["profile"])
    level = read_compatibility(values.get("hardware_compatible", "none"))
    info = read_stored(values["info"], name)
    return EngineInfo(**{**values, "info": info, "profile": (lowest, best, highest), "hardware_compatible": level})


def check_fits(engine_info: EngineInfo, name: str, version: str, gpu: Gpu) -> None:
    """Raise `ArtifactError` when an engine was built for another TensorRT or another GPU than these.

    Another model of the same compute capability gets a warning: TensorRT runs the engine, but chose its kernels, and
    the memory that they need, for the model that built it.
    """
    built, here = version_numbers(engine_info.tensorrt), version_numbers(version)
    later = engine_info.version_compatible and here[0] == built[0] and here > built
    if version != engine_info.tensorrt and not later:
        raise ArtifactError(
            f"{name} was built by TensorRT {engine_info.tensorrt}, this is {version}; build it again here (engines "
            "built with `version_compatible=True` run on later versions of the same major number)"
        )
    ampere = engine_info.hardware_compatible == "ampere+" and version_numbers(gpu.capability) >= AMPERE
    if gpu.capability != engine_info.capability and not ampere:
        raise ArtifactError(
            f"{name} was built for {engine_info.gpu} (compute capability {engine_info.capability}), this is {gpu.name} "
            f"({gpu.capability}); build it again here"
        )
    if gpu.name != engine_info.gpu and engine_info.hardware_compatible == "none":
        warnings.warn(
            f"{name} was built on {engine_info.gpu}, this is {gpu.name}: it may be slow or run out of memory; build it "
            "again here",
            stacklevel=3,
        )


def warn_if_accepted(engine_info: EngineInfo, name: str) -> None:
    """Warn of an engine that was written in spite of a failed verification."""
    if engine_info.accepted:
        warnings.warn(
            f"{name} failed its verification and was accepted as it is; what was wrong: "
            f"{' '.join(engine_info.report.split())}",
            stacklevel=3,
        )


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version or a compute capability, to be compared: (10, 13, 3, 9)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
