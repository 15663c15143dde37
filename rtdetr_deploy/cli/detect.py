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
    from rtdetr_deploy.cli.detect_options import DetectOptions
    from rtdetr_deploy.detections import Detections
    from rtdetr_deploy.errors import RtdetrError

SPELLINGS = {"engine": "MODEL", "sources": "IMAGE", "json_lines": "--json"}
"""How arguments are typed that have no option of their name."""
EXAMPLES = """examples:
  rtdetr-detect r50-l6-640x640-fp32.onnx street.jpg --output annotated
  rtdetr-detect r50-l6-640x640-fp32.onnx photos/ 'more/*.png' --json found.jsonl --classes person,car

exit status: 0 all images done, 1 some were skipped or some pictures not written, 2 wrong input, 130 interrupted,
128 + n ended by signal n (SIGTERM: 143)
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-detect`."""
    from rtdetr_deploy.cli.arguments import Parser, add_options
    from rtdetr_deploy.cli.detect_options import DetectOptions
    from rtdetr_deploy.options import path_argument

    parser = Parser("rtdetr-detect", "Detect objects in images with an exported RT-DETR model.", EXAMPLES)
    parser.add_argument("engine", type=path_argument, metavar="MODEL", help="model file, e.g. from rtdetr-export")
    parser.add_argument(
        "sources", nargs="+", metavar="IMAGE", help="image, folder (searched recursively) or glob pattern"
    )
    add_options(parser, DetectOptions)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (see `EXAMPLES`)."""
    return run_main("rtdetr-detect", lambda: _detect(_parse(argv)), "what was done is kept", spellings=SPELLINGS)


def _parse(argv: Sequence[str] | None) -> DetectOptions:
    from rtdetr_deploy.cli.arguments import options_of
    from rtdetr_deploy.cli.detect_options import DetectOptions

    typed = build_parser().parse_args(argv)
    return DetectOptions(engine=typed.engine, sources=tuple(typed.sources), **options_of(DetectOptions, typed))


def _detect(options: DetectOptions) -> int:
    import warnings

    from rtdetr_deploy.cli.detect_files import check_targets, detect_files
    from rtdetr_deploy.files import refuse_overwriting
    from rtdetr_deploy.fonts import check_font
    from rtdetr_deploy.predictor import Predictor

    warnings.filterwarnings("ignore", module=r"PIL\.")  # of large images and odd EXIF; what matters is an ImageError
    to_stdout = _is_for_stdout(options.json)
    text = sys.stderr if to_stdout else sys.stdout
    target: Path | None = None if to_stdout else options.json
    check_targets(options.output, target)
    read = (options.engine, options.class_names, options.font)
    refuse_overwriting({"`json_lines`": target}, [path for path in read if path is not None])
    if options.font is not None:
        check_font(options.font)
    with Predictor(
        options.engine,
        options.threshold,
        class_names=options.class_names,
        resizer=options.resizer,
        runtime=options.runtime,
        device=options.device,
        threads=options.threads,
        precision=options.precision,
        hint=options.hint,
        slots=options.slots,
        cache=options.cache,
        spinning=options.spinning,
        blocking_sync=options.blocking_sync,
        size=options.size,
        max_pixels=options.max_pixels,
        full_decode=options.full_decode,
    ) as predictor:
        summary = detect_files(
            predictor,
            options.sources,
            classes=options.classes,
            output=options.output,
            json_lines=sys.stdout if to_stdout else target,
            font=options.font,
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

    from rtdetr_deploy.cli.run import as_shown
    from rtdetr_deploy.errors import ImageError, RtdetrError
    from rtdetr_deploy.words import printable

    def report(path: Path, result: Detections | RtdetrError) -> None:
        if isinstance(result, RtdetrError):
            kind = "skipped" if isinstance(result, ImageError) else "not written"
            message = as_shown(result, SPELLINGS)
            tqdm.write(f"rtdetr-detect: {kind}: {printable(message)}", file=sys.stderr)
            return
        counts = ", ".join(f"{count} {name}" for name, count in Counter(result.names).most_common())
        tqdm.write(printable(f"{path}: {counts or 'nothing found'}"), file=text)

    return report


if __name__ == "__main__":
    sys.exit(main())
