"""What is known about a TensorRT engine: stored beside it, so that the engine stays a plain one.

`model.engine` is what `trtexec --loadEngine` accepts; `model.engine.json` says what it detects, and where it may run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rtdetr_deploy.artifact import METADATA_KEY, ArtifactInfo, read_metadata
from rtdetr_deploy.errors import ArtifactError

FORMAT = 1


@dataclass(frozen=True)
class EngineInfo:
    """Facts about an engine file.

    `info` of the model; `tensorrt` version that built it; `gpu` name and compute `capability` ("7.5") of the device it
    was built on; `profile` smallest, best and largest batch; SHA-256 of the ONNX file and of the engine;
    `version_compatible` and `hardware_compatible` as it was built.
    """

    info: ArtifactInfo
    tensorrt: str
    gpu: str
    capability: str
    profile: tuple[int, int, int]
    onnx_digest: str
    engine_digest: str
    version_compatible: bool = False
    hardware_compatible: bool = False

    def to_json(self) -> str:
        """Return the content of the file beside the engine."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({"format": FORMAT, **values, "info": json.loads(self.info.to_json())}, indent=1)


def sidecar_path(engine: Path) -> Path:
    """Return where the facts about `engine` are stored."""
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
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} can't be read: {error}; build the engine again") from error
    try:
        if stored["format"] > FORMAT:
            raise ArtifactError(f"{path} was written by a newer rtdetr-deploy; update this one")
        values = {field.name: stored[field.name] for field in fields(EngineInfo)}
        smallest, best, largest = (int(batch) for batch in values["profile"])
        info = read_metadata({METADATA_KEY: json.dumps(values["info"])}, path.name)
        facts = EngineInfo(**{**values, "info": info, "profile": (smallest, best, largest)})
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} does not describe an engine ({error!r}); build the engine again") from error
    if facts.engine_digest != hashlib.sha256(content).hexdigest():
        raise ArtifactError(f"{path.name} belongs to another engine than {engine.name}; build it again, or delete it")
    return facts
