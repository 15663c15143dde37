"""Export with two numbers of decoder layers, detect on a picture with both, show boxes and times."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from PIL import Image

from rtdetr_deploy import Detections, ImageError, Predictor
from rtdetr_deploy.cli.run import run_main
from rtdetr_deploy.files import check_writable, require_file
from rtdetr_deploy.options import parse_size, path_argument
from rtdetr_export import ExportOptions, Step, export
from rtdetr_export.cli import print_result
from rtdetr_train.data.smears import draw_smear

FOLDER = Path(__file__).resolve().parent
CELLS = FOLDER / "blood-cells-r18.pth"
"""The shipped checkpoint; see blood-cells-r18.md."""
PHOTOGRAPH = FOLDER / "coffee.jpg"
SMEAR_SEED = 20282
TIMED_RUNS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights", type=path_argument, default=CELLS, help="checkpoint (default: blood cells, %(default)s)"
    )
    parser.add_argument(
        "--image", type=path_argument, help="picture (default: a drawn blood smear; coffee.jpg with --weights)"
    )
    parser.add_argument("--size", help="input size (default: what the checkpoint names, else 640)")
    parser.add_argument("--output", type=path_argument, default=FOLDER / "output", help="folder (default: %(default)s)")
    return run_main("demo", lambda: _show(parser.parse_args(argv)), "the demo was not finished")


def _show(arguments: argparse.Namespace) -> int:
    size = None if arguments.size is None else parse_size(arguments.size)
    check_writable(arguments.output, folder=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    image = arguments.image or (draw(arguments.output) if arguments.weights == CELLS else PHOTOGRAPH)
    require_file(image, ImageError)
    run(arguments.weights, image, size, arguments.output)
    return 0


def draw(output: Path) -> Path:
    """Draw a smear that no training has seen, and return its path."""
    print(f"drawing a blood smear (seed {SMEAR_SEED})")
    path = output / "smear.png"
    Image.fromarray(draw_smear(SMEAR_SEED).image).save(path)
    return path


def run(weights: Path, image: Path, size: tuple[int, int] | None, output: Path) -> None:
    """Do everything; results go into the folder `output`."""
    for layers in (1, None):
        target = output / f"{weights.stem}-{'one-layer' if layers else 'all-layers'}.onnx"
        options = ExportOptions(weights=weights, output=target, layers=layers, size=size)
        print(f"\n== export, {'1 decoder layer' if layers else 'all decoder layers'}")
        print_result(export(options, print_step))
        with Predictor(target, threshold=0.5) as predictor:
            found = predictor.detect(image)
            print(f"\n== detect on {image.name}: {time_detection(predictor, image):.1f} ms per image (median)")
        print_table(found)
        picture = output / "detections.png"
        found.draw(image).save(picture)
    print(f"\nannotated picture: {picture}")


def print_step(step: Step) -> None:
    """Print a step of the export when it has ended."""
    if step.seconds is not None:
        print(f"  {step.name:<48} {step.seconds:6.1f} s")


def time_detection(predictor: Predictor, image: Path) -> float:
    """Return the median milliseconds of `detect`, file decoding included."""
    predictor.warmup()
    samples = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        predictor.detect(image)
        samples.append(1000.0 * (time.perf_counter() - start))
    return median(samples)


def print_table(found: Detections) -> None:
    """Print one line per detection, boxes as x1 y1 x2 y2 in pixels."""
    print(f"{'class':<16}{'score':>7}{'x1':>9}{'y1':>9}{'x2':>9}{'y2':>9}")
    for detection in found:
        print(f"{detection.name:<16}{detection.score:>7.3f}" + "".join(f"{value:>9.1f}" for value in detection.box))
    if not len(found):
        print("nothing found")


if __name__ == "__main__":
    sys.exit(main())
