"""rtdetr-train: from a COCO json to a checkpoint in the released layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rtdetr_deploy.cli.arguments import path_argument
from rtdetr_deploy.cli.run import run_main
from rtdetr_deploy.packages import require
from rtdetr_train.memory import keep_freed_memory
from rtdetr_train.options import DEFAULT_VARIANT, TrainOptions, check_paths

if TYPE_CHECKING:
    from rtdetr_train.trainer import Epoch, Step, Watcher

DEFAULTS = TrainOptions(Path(), Path(), Path())
EXAMPLES = """examples:
  rtdetr-train --data train.json --images train/ --val val.json --val-images val/ --variant r18 --output runs/cells
  rtdetr-train --data train.json --images train/ --weights r50.pth --freeze backbone --output runs/tuned

The same command continues a run that was stopped.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-train`."""
    parser = argparse.ArgumentParser(
        prog="rtdetr-train",
        description="Train an RT-DETR model on a COCO json, from scratch or from a checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, text: str, kind: Callable[[str], object] = str, **more: object) -> None:
        default = getattr(DEFAULTS, name.removeprefix("--").replace("-", "_"))
        shown = f" (default: {default})" if default is not None and default is not False else ""
        parser.add_argument(name, type=kind, default=default, help=text + shown, **more)  # type: ignore[arg-type]

    for name, text in (("--data", "COCO json to train on"), ("--images", "folder of its images")):
        parser.add_argument(name, type=path_argument, required=True, help=text)
    parser.add_argument(
        "--output", type=path_argument, required=True, help="folder of last.pth, best.pth; continued if there"
    )
    add("--val", "COCO json to evaluate on", path_argument)
    add("--val-images", "folder of its images (default: that of --images)", path_argument)
    add("--variant", f"model to train (default: {DEFAULT_VARIANT}, or that of --weights, which must agree)")
    add("--weights", "checkpoint to start from; its variant is used", path_argument)
    add("--layers", "decoder layers (default: what the variant runs)", int)
    add("--queries", "queries", int)
    add("--size", "input size in pixels, a multiple of 32", int)
    add("--scales", "vary the size from batch to batch by up to this many steps of 32", int)
    add("--epochs", "epochs of the whole run", int)
    add("--batch", "images per step", int)
    add("--rate", "learning rate of AdamW", float)
    add("--backbone-rate", "factor on the rate for the backbone; 1 when training from scratch", float)
    add("--weight-decay", "decay of weights; norms and biases have none", float)
    add("--warmup", "steps of linear warm-up", int)
    add("--average", "decay of the moving average of weights", float)
    add("--clip", "largest norm of the gradient", float)
    add("--expand", "largest zoom out of the augmentation", float)
    add("--plain-epochs", "last epochs without colour jitter, zoom and crop, flips only", int)
    add("--evaluate-every", "epochs between evaluations", int)
    add("--device", "cpu, cuda or cuda:N")
    add("--workers", "threads that load images ahead", int)
    add("--seed", "seed of everything random", int)
    parser.add_argument(
        "--freeze", choices=("backbone", "norms"), help="keep the backbone, or its batch norms, as they are"
    )
    parser.add_argument("--any-orientation", action="store_true", help="also flip vertically and transpose")
    parser.add_argument(
        "--no-encoder-iou-targets",
        dest="encoder_iou_targets",
        action="store_false",
        help="ablation: reward selected encoder predictions alike instead of by IoU (see docs/training.md)",
    )
    bf16 = argparse.BooleanOptionalAction
    parser.add_argument("--bf16", action=bf16, default=None, help="bfloat16 autocast (default: on CUDA only)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 2 wrong input, 130 interrupted)."""
    again = "the same command continues after the last epoch"
    return run_main("rtdetr-train", lambda: _train(build_parser().parse_args(argv)), again)


def _train(arguments: argparse.Namespace) -> int:
    options = TrainOptions(**vars(arguments))
    check_paths(options)
    for module in ("torch", "scipy"):
        require(module, "training", "train")
    from rtdetr_train.trainer import train

    if options.device == "cpu":
        keep_freed_memory()
    path = train(options, _watcher(options))
    print(f"checkpoint: {path}")
    return 0


def _watcher(options: TrainOptions) -> Watcher:
    """Return a watcher that shows a moving line on a terminal and one line per epoch."""
    from tqdm import tqdm

    from rtdetr_train.trainer import Watcher

    def on_step(step: Step) -> None:
        if sys.stderr.isatty():
            losses = "  ".join(f"{name} {value:.3f}" for name, value in step.losses.items())
            line = f"epoch {step.epoch + 1}/{options.epochs}  step {step.step + 1}/{step.steps}  {losses}"
            left = tqdm.format_interval(step.seconds_left)
            print(f"\r\x1b[K{line}  left {left}", end="", file=sys.stderr, flush=True)

    def on_epoch(epoch: Epoch) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        losses = "  ".join(f"{name} {value:.3f}" for name, value in epoch.losses.items())
        scores = ""
        if epoch.accuracy is not None:
            metrics = epoch.accuracy.metrics
            scores = f"  AP {metrics['AP']:.3f}  AP50 {metrics['AP50']:.3f}" + ("  best" if epoch.best else "")
        print(f"epoch {epoch.epoch + 1}/{options.epochs}  {losses}{scores}", flush=True)

    return Watcher(on_step, on_epoch)


if __name__ == "__main__":
    sys.exit(main())
