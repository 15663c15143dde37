"""What the checks are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rtdetr_deploy.options import option, path_argument

ROOT = Path(__file__).resolve().parents[2]
BCCD = ROOT.parent / "shared" / "data" / "bccd"


@dataclass(frozen=True)
class CheckOptions:
    """Which checks are run (`only`; none: all), on which GPU, with which checkpoint and images, and where results go.

    `output` None is benchmarks/results/gpu-check-NAME.json, NAME being the GPU's, where all else is as by default.
    """

    only: tuple[str, ...] = option((), "run this check (may be repeated; default: all)", metavar="NAME", repeated=True)
    device: str = option("cuda", "the GPU: cuda (the first) or cuda:N", metavar="DEVICE")
    weights: Path = option(
        ROOT / "demo" / "blood-cells-r18.pth", "checkpoint that placements and engines are made of",
        type=path_argument, metavar="CHECKPOINT", default_help="the demo's",
    )  # fmt: skip
    annotations: Path = option(
        BCCD / "annotations" / "val.json", "COCO json for the accuracy of placements",
        type=path_argument, metavar="JSON", default_help="BCCD's val.json beside the checkout",
    )  # fmt: skip
    images: Path = option(
        BCCD / "val",
        "folder of its images",
        type=path_argument,
        metavar="DIR",
        default_help="BCCD's beside the checkout",
    )
    output: Path | None = option(
        None, "results to write", type=path_argument, metavar="FILE",
        default_help="benchmarks/results/gpu-check-NAME.json for a whole run with the checkpoint and images above",
    )  # fmt: skip

    @property
    def is_standard(self) -> bool:
        """Whether results may be put beside those of other GPUs: of all checks, the demo's checkpoint, BCCD."""
        return replace(self, device="cuda", output=None) == CheckOptions()
