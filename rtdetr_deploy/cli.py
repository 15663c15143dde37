"""rtdetr-detect: a model file on images, with pictures, JSON and times."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rtdetr_deploy.arguments import parse_classes, parse_size
from rtdetr_deploy.command import run_command
from rtdetr_deploy.detect_files import OnImage, detect_files
from rtdetr_deploy.detections import Detections
from rtdetr_deploy.errors import ImageError, OutputError
from rtdetr_deploy.predictor import Predictor
from rtdetr_deploy.preprocess import RESIZERS
from rtdetr_deploy.runtimes import DEVICES
from rtdetr_deploy.sources import MAX_PIXELS

EXAMPLES = """examples:
  rtdetr-detect r50-l6-640x640-fp32.onnx street.jpg --output annotated
  rtdetr-detect r50-l6-640x640-fp32.onnx photos/ 'more/*.png' --json found.jsonl --classes person,car

exit status: 0 all images done, 1 some were skipped, 2 wrong input, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-detect`."""
    parser = argparse.ArgumentParser(
        prog="rtdetr-detect",
        description="Detect objects in images with an exported RT-DETR model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("engine", type=Path, metavar="MODEL", help="model file, e.g. from rtdetr-export")
    add("sources", nargs="+", metavar="IMAGE", help="image, folder (searched recursively) or glob pattern")
    add("--output", type=Path, metavar="DIR", help="write annotated pictures into this folder")
    add("--json", metavar="FILE", help="write one JSON object per image and line; - for standard output")
    add("--threshold", type=float, default=0.5, metavar="T", help="smallest score kept, 0 to 1 (default: %(default)s)")
    add("--classes", metavar="A,B", help="keep these classes only: names or indices, comma-separated (default: all)")
    add("--class-names", type=Path, metavar="FILE", help="one name per line (default: those stored in the model)")
    add("--resizer", choices=RESIZERS, default=RESIZERS[0], help="library that resizes (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="threads of the engine (default: the engine decides)")
    add("--device", choices=DEVICES, help="where the model runs (default: engines on the GPU, all else on the CPU)")
    add("--size", metavar="SIZE", help="640 or HEIGHTxWIDTH, for models of others that leave it open")
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="largest image decoded (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (see `EXAMPLES`)."""
    arguments = build_parser().parse_args(argv)
    return run_command("rtdetr-detect", lambda: _detect(arguments), "what was done is kept")


def _detect(arguments: argparse.Namespace) -> int:
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of large images and odd EXIF; what matters is an ImageError
    to_stdout = arguments.json == "-"
    text = sys.stderr if to_stdout else sys.stdout
    if arguments.json and Path(arguments.json).resolve() == arguments.engine.resolve():
        raise OutputError(f"--json would overwrite the model {arguments.engine}")
    with Predictor(
        arguments.engine,
        arguments.threshold,
        class_names=arguments.class_names,
        resizer=arguments.resizer,
        threads=arguments.threads,
        device=arguments.device,
        size=parse_size(arguments.size) if arguments.size else None,
        max_pixels=arguments.max_pixels,
    ) as predictor:
        summary = detect_files(
            predictor,
            arguments.sources,
            classes=parse_classes(arguments.classes) if arguments.classes is not None else None,
            output=arguments.output,
            json_lines=sys.stdout if to_stdout else Path(arguments.json) if arguments.json else None,
            on_image=_reporter(text),
            progress=sys.stderr.isatty(),
        )
    print(summary, file=text)
    if summary.interrupted:
        raise KeyboardInterrupt
    return 1 if summary.skipped else 0


def _reporter(text: TextIO) -> OnImage:
    """Return a function that prints one line per image: what was found, or why it was skipped."""
    from tqdm import tqdm

    def report(path: Path, result: Detections | ImageError) -> None:
        if isinstance(result, ImageError):
            tqdm.write(f"rtdetr-detect: skipped: {result}", file=sys.stderr)
            return
        counts = ", ".join(f"{count} {name}" for name, count in Counter(result.names).most_common())
        tqdm.write(f"{path}: {counts or 'nothing found'}", file=text)

    return report


if __name__ == "__main__":
    sys.exit(main())
