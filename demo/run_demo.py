"""Export with two numbers of decoder layers, detect on a photograph with both, show boxes and times."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rtdetr_deploy import Detections, Predictor, RtdetrError
from rtdetr_deploy.arguments import parse_size
from rtdetr_export import ExportOptions, export_onnx
from rtdetr_export.cli import print_result

FOLDER = Path(__file__).resolve().parent
SEEDED_NAME = "seeded-r18.pth"
SHOWN = 8
TIMED_RUNS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="checkpoint (default: R18 with seeded random weights)")
    parser.add_argument("--image", type=Path, default=FOLDER / "coffee.jpg", help="picture (default: %(default)s)")
    parser.add_argument("--size", default="640", help="input size (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=FOLDER / "output", help="folder (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        run(arguments.weights, arguments.image, parse_size(arguments.size), arguments.output)
    except RtdetrError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


def run(weights: Path | None, image: Path, size: tuple[int, int], output: Path) -> None:
    """Do everything; results go into the folder `output`."""
    trained = weights is not None
    weights = weights or make_seeded_checkpoint(output / SEEDED_NAME)
    height, width = size
    for layers in (1, None):
        target = output / f"{weights.stem}-{'one-layer' if layers else 'all-layers'}.onnx"
        options = ExportOptions(weights=weights, output=target, layers=layers, height=height, width=width)
        print(f"\n== export, {'1 decoder layer' if layers else 'all decoder layers'}")
        print_result(export_onnx(options, lambda step, seconds: print(f"  {step:<48} {seconds:6.1f} s")))
        with Predictor(target, threshold=0.5 if trained else 0.0) as predictor:
            found = predictor.detect(image)[: None if trained else SHOWN]
            print(f"\n== detect on {image.name}: {time_detection(predictor, image):.1f} ms per image (median)")
        print_table(found)
        picture = output / "detections.png"
        found.draw(image).save(picture)
    print(f"\nannotated picture: {picture}")
    if not trained:
        print("The weights are random: every step above is real, the boxes mean nothing. Yours: make demo WEIGHTS=FILE")


def make_seeded_checkpoint(path: Path) -> Path:
    """Write an R18 with seeded random weights in the released layout."""
    import torch

    from rtdetr_deploy.model import RTDETR, VARIANTS
    from rtdetr_deploy.model.random_weights import fill_randomly

    print("no --weights given: making an R18 with seeded random weights")
    model = RTDETR(VARIANTS["r18"])
    fill_randomly(model, seed=0)
    torch.save({"ema": {"module": model.state_dict()}}, path)
    return path


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
