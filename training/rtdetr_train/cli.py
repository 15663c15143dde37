"""rtdetr-train: from a COCO json to a checkpoint in the released layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from rtdetr_deploy.cli.run import run_main

if TYPE_CHECKING:
    from tqdm import tqdm

    from rtdetr_train.options import TrainOptions
    from rtdetr_train.trainer import Epoch, Step, Watcher

EXAMPLES = """examples:
  rtdetr-train --annotations train.json --images train/ --val-annotations val.json --val-images val/ --output runs/cells
  rtdetr-train --annotations train.json --images train/ --weights r50.pth --freeze backbone --output runs/tuned

The same command continues a run that was stopped.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-train`."""
    from rtdetr_deploy.cli.arguments import Parser, add_options
    from rtdetr_train.options import TrainOptions

    description = "Train an RT-DETR model on a COCO json, from scratch or from a checkpoint."
    parser = Parser("rtdetr-train", description, EXAMPLES)
    add_options(parser, TrainOptions)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 2 wrong input, 130 interrupted)."""
    again = "the same command continues after the last epoch"
    return run_main("rtdetr-train", lambda: _train(build_parser().parse_args(argv)), again)


def _train(arguments: argparse.Namespace) -> int:
    from rtdetr_deploy.cli.arguments import options_of
    from rtdetr_deploy.packages import require
    from rtdetr_train.memory import keep_freed_memory
    from rtdetr_train.options import TrainOptions, check_paths

    options = TrainOptions(**options_of(TrainOptions, arguments))
    check_paths(options)
    for module in ("torch", "scipy"):
        require(module, "training", "train")
    from tqdm import tqdm

    from rtdetr_train.trainer import train

    if options.device == "cpu":
        keep_freed_memory()
    # The time left is that of the mean step so far, evaluation included.
    with tqdm(unit="step", smoothing=0, leave=False, disable=not sys.stderr.isatty()) as bar:
        path = train(options, _watcher(options, bar))
    print(f"checkpoint: {path}")
    return 0


def _watcher(options: TrainOptions, bar: tqdm[NoReturn]) -> Watcher:
    """Return a watcher that moves `bar` along the steps of the whole run, and prints one line per epoch."""
    from rtdetr_train.trainer import Watcher

    def on_step(step: Step) -> None:
        if bar.total is None:
            bar.total = options.epochs * step.steps
            bar.initial = bar.n = step.epoch * step.steps
        bar.set_description(f"epoch {step.epoch + 1}/{options.epochs}", refresh=False)
        bar.set_postfix_str(_as_text(step.losses), refresh=False)
        bar.update()

    def on_epoch(epoch: Epoch) -> None:
        scores = ""
        if epoch.accuracy is not None:
            metrics = epoch.accuracy.metrics
            scores = f"  AP {metrics['AP']:.3f}  AP50 {metrics['AP50']:.3f}" + ("  best" if epoch.best else "")
        bar.write(f"epoch {epoch.epoch + 1}/{options.epochs}  {_as_text(epoch.losses)}{scores}", file=sys.stdout)
        sys.stdout.flush()

    return Watcher(on_step, on_epoch)


def _as_text(losses: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in losses.items())


if __name__ == "__main__":
    sys.exit(main())
