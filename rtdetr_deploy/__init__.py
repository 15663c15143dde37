"""Run RT-DETR detectors: `Predictor(engine).detect(image)`. Needs no torch."""

from importlib.metadata import PackageNotFoundError, version

from rtdetr_deploy.artifact import ArtifactInfo, ThirdPartyInfo
from rtdetr_deploy.classes import COCO_CATEGORY_IDS, COCO_NAMES
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
from rtdetr_deploy.predictor import Predictor
from rtdetr_deploy.runtimes import open_runtime
from rtdetr_deploy.sources import find_images

try:
    __version__ = version("rtdetr-deploy")
except PackageNotFoundError:  # running from a source tree that is not installed
    __version__ = "0+unknown"

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
    "ThirdPartyInfo",
    "find_images",
    "open_runtime",
]
