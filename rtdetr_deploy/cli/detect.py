"""rtdetr-detect: a model file on images, with pictures, JSON and times.

What takes long to import is imported inside `run_main`, which knows how to end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rtdetr_deploy.cli.run import run_main

if TYPE_CHECKING:
    from rtdetr_deploy.cli.detect_files import OnImage
    from rtdetr_deploy.detections import Detections
    from rtdetr_deploy.errors import RtdetrError

EXAMPLES = """examples:
  rtdetr-detect r50-l6-640x640-fp32.onnx street.jpg --output annotated
  rtdetr-detect r50-l6-640x640-fp32.onnx photos/ 'more/*.png' --json found.jsonl --classes person,car

exit status: 0 all images done, 1 some were skipped or some pictures not written, 2 wrong input, 130 interrupted,
128 + n ended by signal n (SIGTERM: 143)
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-detect`."""
    from rtdetr_deploy.cli.arguments import path_argument
    from rtdetr_deploy.images.frame import MAX_PIXELS
    from rtdetr_deploy.images.preprocess import RESIZERS

    parser = argparse.ArgumentParser(
        prog="rtdetr-detect",
        description="Detect objects in images with an exported RT-DETR model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("engine", type=path_argument, metavar="MODEL", help="model file, e.g. from rtdetr-export")
    add("sources", nargs="+", metavar="IMAGE", help="image, folder (searched recursively) or glob pattern")
    add("--output", type=path_argument, metavar="DIR", help="write annotated pictures into this folder")
    add(
        "--json",
        type=path_argument,
        metavar="FILE",
        help="write one JSON object per image and line; - for standard output",
    )
    add("--threshold", type=float, default=0.5, metavar="T", help="smallest score kept, 0 to 1 (default: %(default)s)")
    add("--classes", metavar="A,B", help="keep these classes only: names or indices, comma-separated (default: all)")
    add(
        "--class-names",
        type=path_argument,
        metavar="FILE",
        help="file with one name per line (default: the names stored in the model)",
    )
    add("--resizer", choices=RESIZERS, default=RESIZERS[0], help="library that resizes (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="threads of the engine (default: the engine decides)")
    add("--device", metavar="DEVICE", help="where the model runs (default: engines on the GPU, all else on the CPU)")
    add("--size", metavar="SIZE", help="640 or HEIGHTxWIDTH, for third-party models that leave it open")
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="largest image decoded (default: %(default)s)")
    add(
        "--font",
        type=path_argument,
        metavar="FILE",
        help="TrueType or OpenType font of the labels (default: an installed one that has the class names' characters)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (see `EXAMPLES`)."""
    return run_main("rtdetr-detect", lambda: _detect(build_parser().parse_args(argv)), "what was done is kept")


def _detect(arguments: argparse.Namespace) -> int:
    import warnings

    from rtdetr_deploy.cli.arguments import parse_classes, parse_size
    from rtdetr_deploy.cli.detect_files import check_targets, detect_files
    from rtdetr_deploy.files import refuse_overwriting
    from rtdetr_deploy.fonts import check_font
    from rtdetr_deploy.predictor import Predictor

    warnings.filterwarnings("ignore", module=r"PIL\.")  # of large images and odd EXIF; what matters is an ImageError
    to_stdout = _is_for_stdout(arguments.json)
    text = sys.stderr if to_stdout else sys.stdout
    target: Path | None = None if to_stdout else arguments.json
    check_targets(arguments.output, target)
    read = (arguments.engine, arguments.class_names, arguments.font)
    refuse_overwriting({"--json": target}, [path for path in read if path is not None])
    if arguments.font is not None:
        check_font(arguments.font)
    with Predictor(
        arguments.engine,
        arguments.threshold,
        class_names=arguments.class_names,
        resizer=arguments.resizer,
        threads=arguments.threads,
        device=arguments.device,
        size=parse_size(arguments.size) if arguments.size is not None else None,
        max_pixels=arguments.max_pixels,
    ) as predictor:
        summary = detect_files(
            predictor,
            arguments.sources,
            classes=parse_classes(arguments.classes) if arguments.classes is not None else None,
            output=arguments.output,
            json_lines=sys.stdout if to_stdout else target,
            font=arguments.font,
            on_image=_reporter(text),
            progress=sys.stderr.isatty(),
        )
    print(summary, file=text)
    if summary.interrupted:
        raise KeyboardInterrupt
    return 1 if summary.skipped or summary.unwritten else 0


def _is_for_stdout(json: Path | None) -> bool:
    """Tell whether the JSON goes to standard output, as `-` or by its name there; the text then goes to stderr."""
    from rtdetr_deploy.errors import OutputError
    from rtdetr_deploy.files import is_standard_output

    if json is None or not (str(json) == "-" or is_standard_output(json)):
        return False
    if sys.__stdout__ is None:
        raise OutputError("--json - writes to standard output, which is closed; name a file")
    return True


def _reporter(text: TextIO) -> OnImage:
    """Return a function that prints one line per image: what was found, or what went wrong."""
    from collections import Counter

    from tqdm import tqdm

    from rtdetr_deploy.errors import ImageError, RtdetrError
    from rtdetr_deploy.words import printable

    def report(path: Path, result: Detections | RtdetrError) -> None:
        if isinstance(result, RtdetrError):
            kind = "skipped" if isinstance(result, ImageError) else "not written"
            tqdm.write(f"rtdetr-detect: {kind}: {printable(result)}", file=sys.stderr)
            return
        counts = ", ".join(f"{count} {name}" for name, count in Counter(result.names).most_common())
        tqdm.write(printable(f"{path}: {counts or 'nothing found'}"), file=text)

    return report


if __name__ == "__main__":
    sys.exit(main())
