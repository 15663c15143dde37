"""A torch model behind the runtimes' protocol, so that a checkpoint is evaluated by the very code that deploys it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from rtdetr_deploy.artifacts.metadata import METADATA_KEY, ArtifactInfo
from rtdetr_deploy.errors import ArtifactError, OptionError
from rtdetr_deploy.model.checkpoints.load import Checkpoint, load_checkpoint
from rtdetr_deploy.model.checkpoints.read import as_input_size
from rtdetr_deploy.model.rtdetr import RTDETR
from rtdetr_deploy.runtimes import Array, TensorSpec


class TorchRuntime:
    """Runs `model` as it is on its own device, in FP32, with images of one size; the caller owns the outputs.

    The model must be in eval mode when it is called, whoever owns it: this class never changes its mode, so that
    several threads can use it at once.
    """

    def __init__(self, model: RTDETR, class_names: Sequence[str], height: int, width: int, source: str = "") -> None:
        self._model: RTDETR | None = model
        variant = model.variant
        self.name = f"torch {torch.__version__}"
        self.inputs = (TensorSpec("images", np.dtype(np.float32), (None, 3, height, width)),)
        self.outputs = (
            TensorSpec("logits", np.dtype(np.float32), (None, None, variant.classes)),
            TensorSpec("boxes", np.dtype(np.float32), (None, None, 4)),
        )
        info = ArtifactInfo(
            class_names=tuple(class_names),
            height=height,
            width=width,
            batch=None,
            variant=variant.name,
            layers=model.layers,
            queries=variant.queries,
            max_detections=300,
            precision="fp32",
            sampler="discrete" if variant.sampling == "discrete" else "grid",
            outputs="raw",
            raw_input=False,
            opset=0,
            source=source,
            source_digest="",
            verified=False,
            version="",
        )
        self.file = source or "the torch model"
        self.max_batch: int | None = None
        self.metadata: Mapping[str, str] = {METADATA_KEY: info.to_json()}

    @torch.no_grad()
    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """See `Runtime.run`; raises `ArtifactError` after `close`, in training mode and for other inputs than named."""
        model = self._model
        if model is None:
            raise ArtifactError("the torch model is closed; open it again")
        if model.training:
            raise ArtifactError("the torch model is in training mode; call its eval() first")
        self._check(feed)
        device = next(model.parameters()).device
        logits, boxes = model(torch.from_numpy(np.ascontiguousarray(feed["images"])).to(device))
        return {"logits": logits.float().cpu().numpy(), "boxes": boxes.float().cpu().numpy()}

    def _check(self, feed: Mapping[str, Array]) -> None:
        (spec,) = self.inputs
        if set(feed) != {spec.name}:
            raise ArtifactError(f"the torch model takes one input called {spec.name}, got {', '.join(feed) or 'none'}")
        images = feed[spec.name]
        if images.dtype != spec.dtype or images.shape[1:] != spec.shape[1:] or not len(images):
            expected = "x".join(str(side) for side in ("batch", *spec.shape[1:]))
            found = "x".join(map(str, images.shape))
            raise ArtifactError(f"the torch model takes {spec.dtype} images {expected}, got {images.dtype} {found}")

    def close(self) -> None:
        """See `Runtime.close`."""
        self._model = None


def open_checkpoint(path: Path, size: tuple[int, int] | None = None, **options: object) -> TorchRuntime:
    """Open a checkpoint file for images of `size` (height, width); `options` are those of `load_checkpoint`.

    Without `size` it is what the checkpoint names, else 640x640.
    """
    checkpoint: Checkpoint = load_checkpoint(path, **options)  # type: ignore[arg-type]
    height, width = size or checkpoint.input_size or (640, 640)
    if as_input_size((height, width)) is None:
        raise OptionError(f"size {height}x{width} doesn't fit; both sides must be multiples of 32 from 64 to 8192")
    return TorchRuntime(checkpoint.model, checkpoint.class_names, height, width, path.name)
