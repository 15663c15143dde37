"""Run RT-DETR detectors: `Predictor(engine).detect(image)`. Needs no torch.

Names are imported when they are first used: a command can be interrupted from its first moment on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtdetr_deploy.artifacts.class_names import COCO_CATEGORY_IDS, COCO_NAMES
    from rtdetr_deploy.artifacts.metadata import ArtifactInfo, ThirdPartyInfo
    from rtdetr_deploy.detections import Detection, Detections
    from rtdetr_deploy.errors import (
        ArtifactError,
        CheckpointError,
        DeviceError,
        ExportError,
        ImageError,
        MissingPackageError,
        OptionError,
        OutputError,
        RtdetrError,
    )
    from rtdetr_deploy.images.find import find_images
    from rtdetr_deploy.predictor import Predictor
    from rtdetr_deploy.runtimes import RuntimeOptions, open_runtime

    __version__: str

__all__ = [
    "COCO_CATEGORY_IDS",
    "COCO_NAMES",
    "ArtifactError",
    "ArtifactInfo",
    "CheckpointError",
    "Detection",
    "Detections",
    "DeviceError",
    "ExportError",
    "ImageError",
    "MissingPackageError",
    "OptionError",
    "OutputError",
    "Predictor",
    "RtdetrError",
    "RuntimeOptions",
    "ThirdPartyInfo",
    "find_images",
    "open_runtime",
]

_MODULES = {
    "COCO_CATEGORY_IDS": "artifacts.class_names",
    "COCO_NAMES": "artifacts.class_names",
    "ArtifactInfo": "artifacts.metadata",
    "ThirdPartyInfo": "artifacts.metadata",
    "Detection": "detections",
    "Detections": "detections",
    "Predictor": "predictor",
    "RuntimeOptions": "runtimes",
    "find_images": "images.find",
    "open_runtime": "runtimes",
}
"""Where names are defined; all others are errors."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _find_version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _find_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rtdetr-deploy")
    except PackageNotFoundError:  # running from a source tree that is not installed
        return "0+unknown"
