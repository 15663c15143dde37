"""Does the class score of a selected query say how well its box lies? The point of uncertainty-minimal query selection.

    python -m rtdetr_train.selection_study --weights with.pth --weights without.pth --annotations val.json --images val/

Compares checkpoints that were trained with and without IoU as the target of the selected encoder predictions
(`rtdetr-train --no-encoder-iou-targets`); see arXiv 2304.08069, section 4.3 and table 4.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

from rtdetr_deploy.artifacts.input_size import DEFAULT_INPUT_SIZE
from rtdetr_deploy.artifacts.weights_file import find_weights
from rtdetr_deploy.cli.arguments import Parser, add_old_spelling
from rtdetr_deploy.cli.run import run_main
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.files import check_writable, refuse_overwriting, write_bytes
from rtdetr_deploy.model import RTDETR, load_checkpoint
from rtdetr_deploy.model.boxes import cxcywh_to_xyxy, pairwise_iou
from rtdetr_deploy.options import path_argument
from rtdetr_train.data.coco import CocoData, collate, read_coco

SCHEMA = 1
GOOD = 0.5
"""Score and IoU above which a selected query counts as sure and as well placed (table 4 of the paper)."""


@dataclass(frozen=True)
class SelectionQuality:
    """All queries that the encoder selected on a data set.

    `pearson` and `spearman` correlation of class score and IoU with the nearest object of that class; `sure` the number
    of queries with a score above 0.5, `sure_and_placed` of those with an IoU above 0.5 too.
    """

    queries: int
    pearson: float
    spearman: float
    sure: int
    sure_and_placed: int


@torch.no_grad()
def selected_queries(model: RTDETR, data: CocoData, size: tuple[int, int]) -> tuple[NDArray[np.float32], ...]:
    """Return class score and IoU `(images * Q,)` of the queries selected on every image of `data`."""
    model.eval()
    scores, overlaps = [], []
    for index in range(len(data)):
        images, targets = collate([data.load(index)], *size)
        selection = model.forward_layers(images).selection
        score, label = selection.scores[0].sigmoid().max(dim=-1)
        overlap = pairwise_iou(cxcywh_to_xyxy(selection.reference[0].sigmoid()), targets.xyxy)  # (Q, objects)
        same = label[:, None] == targets.labels[None]
        scores.append(score.numpy())
        overlaps.append((overlap * same).amax(dim=1).numpy() if len(targets) else np.zeros(len(score)))
    return np.concatenate(scores).astype(np.float32), np.concatenate(overlaps).astype(np.float32)


def summarize(scores: NDArray[np.float32], overlaps: NDArray[np.float32]) -> SelectionQuality:
    """Return the figures of queries with these class scores and IoUs.

    Raises `OptionError` when there is nothing to correlate, because no query lies on an object of its class.
    """
    if np.ptp(overlaps) == 0 or np.ptp(scores) == 0:
        raise OptionError("no selected query lies on an object of its class: is the model trained?")
    sure = scores > GOOD
    return SelectionQuality(
        queries=len(scores),
        pearson=float(pearsonr(scores, overlaps).statistic),
        spearman=float(spearmanr(scores, overlaps).statistic),
        sure=int(sure.sum()),
        sure_and_placed=int((sure & (overlaps > GOOD)).sum()),
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser("rtdetr_train.selection_study", (__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--weights", type=path_argument, action="append", required=True, help="checkpoint; repeat to compare")
    add("--annotations", type=path_argument, required=True, help="COCO json")
    add("--images", type=path_argument, required=True, help="folder of its images")
    add("--json", type=path_argument, help="write the figures")
    add_old_spelling(parser, "--data", "--annotations")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_main(
        "rtdetr_train.selection_study", lambda: _study(build_parser().parse_args(argv)), "nothing was measured"
    )


def _study(arguments: argparse.Namespace) -> int:
    refuse_overwriting({"--json": arguments.json}, [*map(find_weights, arguments.weights), arguments.annotations])
    if arguments.json is not None:
        check_writable(arguments.json)
    data = read_coco(arguments.annotations, arguments.images)
    rows = {}
    print(f"{'checkpoint':<32} {'queries':>8} {'Pearson':>8} {'Spearman':>9} {'sure':>6} {'and placed':>11}")
    for path in arguments.weights:
        checkpoint = load_checkpoint(path)
        if checkpoint.class_names != data.class_names:
            raise OptionError(
                f"{path} and {arguments.annotations} have different classes; give the json that it was trained on"
            )
        found = summarize(*selected_queries(checkpoint.model, data, checkpoint.input_size or DEFAULT_INPUT_SIZE))
        name = f"{path.parent.name}/{path.name}"
        rows[name] = asdict(found)
        print(
            f"{name:<32} {found.queries:>8} {found.pearson:>8.3f} {found.spearman:>9.3f} {found.sure:>6} "
            f"{found.sure_and_placed:>11}"
        )
    if arguments.json is not None:
        content = {
            "schema": SCHEMA,
            "study": "selection",
            "annotations": arguments.annotations.name,
            "checkpoints": rows,
        }
        write_bytes(arguments.json, json.dumps(content, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
