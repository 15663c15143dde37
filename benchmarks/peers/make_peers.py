"""Exports the models that rtdetr-bench compares with, exactly as their authors export them (see README.md here).

    python make_peers.py --output peers/ --annotations train.json --images train/ \
        --val-annotations val.json --val-images val/

Weights are random but for YOLOv8n, which is trained briefly on the data given, so that its boxes are real. Ultralytics
is AGPL-3.0: this script runs it in an environment of its own, and nothing of it comes into the project or its packages.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

SIZE = 640
ULTRALYTICS = ("rtdetr-l", "rtdetr-resnet50", "yolov8s", "yolov8m", "yolov8l", "yolo11s", "yolo11m", "yolo11l")
HUGGING_FACE = {"huggingface-r18": ("resnet18", 3), "huggingface-r50": ("resnet50", 6)}


def main() -> None:
    """Make what is missing in the output folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the ONNX files")
    parser.add_argument("--annotations", type=Path, help="COCO json to train YOLOv8n on; else that file is left out")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument("--val-annotations", type=Path, help="COCO json to validate on")
    parser.add_argument("--val-images", type=Path, help="folder of its images")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--train-size", type=int, default=320, help="input of the trained YOLOv8n (default: 320)")
    parser.add_argument("--only", nargs="*", help="names of the files to make, without suffix (default: all)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    jobs: dict[str, Callable[[Path], None]] = {name: partial(export_ultralytics, name) for name in ULTRALYTICS}
    jobs |= {name: partial(export_hugging_face, name) for name in HUGGING_FACE}
    if arguments.annotations is not None:
        jobs["yolov8n-trained"] = partial(train_yolo, arguments)
    torch.manual_seed(0)
    for name, make in jobs.items():
        target = arguments.output / f"{name}.onnx"
        if not target.exists() and (not arguments.only or name in arguments.only):
            make(target)
            print(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB)", flush=True)


def export_ultralytics(name: str, target: Path) -> None:
    """Export a model of random weights with Ultralytics' exporter and its defaults."""
    from ultralytics import RTDETR, YOLO

    model = (RTDETR if name.startswith("rtdetr") else YOLO)(f"{name}.yaml")
    make_layers_differ(model.model)
    shutil.move(str(model.export(format="onnx", imgsz=SIZE)), target)


def make_layers_differ(model: torch.nn.Module) -> None:
    """Add noise to the weights: decoder layers start as copies of one, and the exporter would compute equal ones once.

    Measured: without it, five of RT-DETR-L's six value projections vanish, 6 % of its time; trained layers differ.
    """
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.add_(torch.randn_like(value) * value.std() * 0.1)


def export_hugging_face(name: str, target: Path) -> None:
    """Export transformers' model of random weights with PyTorch's exporter."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone, layers = HUGGING_FACE[name]
    deep = backbone == "resnet50"
    config = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(
            depths=[3, 4, 6, 3] if deep else [2, 2, 2, 2],
            hidden_sizes=[256, 512, 1024, 2048] if deep else [64, 128, 256, 512],
            layer_type="bottleneck" if deep else "basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        encoder_in_channels=[512, 1024, 2048] if deep else [128, 256, 512],
        hidden_expansion=1.0 if deep else 0.5,
        decoder_layers=layers,
        num_labels=80,
        anchor_image_size=[SIZE, SIZE],
    )
    model = RTDetrForObjectDetection(config).eval()
    make_layers_differ(model)

    class Outputs(torch.nn.Module):
        """The two outputs that a detector needs."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.model(pixel_values)
            return found.logits, found.pred_boxes

    images = torch.rand(1, 3, SIZE, SIZE)
    torch.onnx.export(
        Outputs().eval(), (images,), str(target), dynamo=False, opset_version=17,
        input_names=["pixel_values"], output_names=["logits", "pred_boxes"],
    )  # fmt: skip


def train_yolo(arguments: argparse.Namespace, target: Path) -> None:
    """Train YOLOv8n from scratch with Ultralytics' defaults and export it at its training size."""
    provide_torchvision()
    from ultralytics import YOLO

    work = target.with_suffix("")
    names = write_yolo_labels(arguments.annotations, arguments.images, work / "train")
    write_yolo_labels(arguments.val_annotations, arguments.val_images, work / "val")
    data = {"path": str(work.resolve()), "train": "train/images", "val": "val/images", "names": dict(enumerate(names))}
    (work / "data.yaml").write_text(json.dumps(data))  # JSON is YAML
    YOLO("yolov8n.yaml").train(
        data=str(work / "data.yaml"), epochs=arguments.epochs, imgsz=arguments.train_size, batch=16, workers=0,
        device="cpu", project=str(work.resolve()), name="run", exist_ok=True, plots=False, seed=0,
    )  # fmt: skip
    best = YOLO(work / "run" / "weights" / "best.pt")
    shutil.move(str(best.export(format="onnx", imgsz=arguments.train_size)), target)


def provide_torchvision() -> None:
    """Let validation during training run where torchvision doesn't fit torch (PyPI has none for CPUs).

    Validation asks it for one function only, non-maximum suppression.
    """
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        import sys
        from types import ModuleType

        module, operators = ModuleType("torchvision"), ModuleType("torchvision.ops")
        operators.nms = suppress  # type: ignore[attr-defined]
        module.ops = operators  # type: ignore[attr-defined]
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        sys.modules.update({"torchvision": module, "torchvision.ops": operators})


def suppress(boxes: torch.Tensor, scores: torch.Tensor, iou: float) -> torch.Tensor:
    """Return the indices of the boxes (n, 4) that greedy suppression keeps, best first."""
    order = scores.argsort(descending=True)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[rest, :2])
        high = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        order = rest[overlap <= iou * (areas[best] + areas[rest] - overlap)]
    return torch.stack(kept) if kept else order


def write_yolo_labels(annotations: Path, images: Path, folder: Path) -> list[str]:
    """Copy images and write Ultralytics' label files; return the class names in the order of their ids."""
    content = json.loads(annotations.read_text())
    categories = sorted(content["categories"], key=lambda category: category["id"])
    index = {category["id"]: position for position, category in enumerate(categories)}
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for box in content["annotations"]:
        width, height = sizes[box["image_id"]]
        x, y, w, h = box["bbox"]
        numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        lines[box["image_id"]].append(f"{index[box['category_id']]} " + " ".join(f"{value:.6f}" for value in numbers))
    for image in content["images"]:
        shutil.copy(images / image["file_name"], folder / "images")
        (folder / "labels" / Path(image["file_name"]).with_suffix(".txt").name).write_text(
            "\n".join(lines[image["id"]])
        )
    return [category["name"] for category in categories]


if __name__ == "__main__":
    main()
