"""The options of `rtdetr-detect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rtdetr_deploy.images.frame import MAX_PIXELS
from rtdetr_deploy.images.preprocess import RESIZERS, Resizer
from rtdetr_deploy.options import classes_argument, option, path_argument, size_argument
from rtdetr_deploy.runtimes import RUNTIMES, RuntimeOptions


@dataclass(frozen=True, kw_only=True)
class DetectOptions(RuntimeOptions):
    """A model, images (files, folders, glob patterns), and what is done with them.

    `output` is the folder for pictures; `json` the file for JSON lines, "-" for standard output; all else is as in
    `Predictor` and `Detections.draw`.
    """

    engine: Path
    sources: tuple[str, ...]
    output: Path | None = option(None, "write annotated pictures into this folder", type=path_argument, metavar="DIR")
    json: Path | None = option(
        None, "write one JSON object per image and line; - for standard output", type=path_argument, metavar="FILE"
    )
    threshold: float = option(0.5, "minimum score of what is kept, 0 to 1", type=float, metavar="T")
    classes: tuple[int | str, ...] | None = option(
        None,
        "keep these classes only: names or indices, comma-separated",
        type=classes_argument,
        metavar="A,B",
        default_help="all",
    )
    class_names: Path | None = option(
        None,
        "file with one name per line",
        type=path_argument,
        metavar="FILE",
        default_help="the names stored in the model",
    )
    resizer: Resizer = option("opencv", "what resizes; cuda is for engines", choices=RESIZERS)
    runtime: str | None = option(
        None,
        "what runs the model",
        choices=tuple(RUNTIMES),
        default_help="what is best for the model, see docs/files.md",
    )
    size: tuple[int, int] | None = option(
        None, "640 or HEIGHTxWIDTH, for third-party models that leave it open", type=size_argument, metavar="SIZE"
    )
    max_pixels: int = option(MAX_PIXELS, "maximum size of an image that is decoded", type=int, metavar="N")
    full_decode: bool = option(
        False, "decode JPEG files whole, however much smaller the model's input is; with --output they are anyway"
    )
    font: Path | None = option(
        None,
        "TrueType or OpenType font of the labels",
        type=path_argument,
        metavar="FILE",
        default_help="an installed one that has the class names' characters",
    )
