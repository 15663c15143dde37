"""A torch model behind the runtimes' protocol, so that a checkpoint is evaluated by the very code that deploys it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rtdetr_deploy.artifacts.decoding import MAX_DETECTIONS
from rtdetr_deploy.artifacts.input_size import DEFAULT_INPUT_SIZE, check_input_size
from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.errors import ArtifactError, DeviceError, OptionError
from rtdetr_deploy.model.checkpoints.load import load_checkpoint
from rtdetr_deploy.model.family import family_of
from rtdetr_deploy.runtimes.feed import check_feed, closed
from rtdetr_deploy.runtimes.options import RuntimeOptions, cpu_or_cuda
from rtdetr_deploy.runtimes.protocol import Array, Feed, TensorSpec
from rtdetr_deploy.words import plural


class TorchRuntime:
    """Runs `model` as it is on its own device, in FP32, with images of one size; the caller owns the outputs.

    The model must be in eval mode when it is called, whoever owns it: this class never changes its mode, so that
    several threads can use it at once. `source` and `source_digest` name the checkpoint that it comes from.
    """

    arithmetic = "fp32"

    def __init__(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        height: int,
        width: int,
        source: str = "",
        source_digest: str = "",
    ) -> None:
        self._model: nn.Module | None = model
        self.file = source or "the torch model"
        self.name = f"torch {torch.__version__} ({str(_device_of(model)).upper()})"
        self.inputs = (TensorSpec("images", np.dtype(np.float32), (None, 3, height, width)),)
        logits = family_of(model).facts(model, height, width).classes
        self.outputs = (
            TensorSpec("logits", np.dtype(np.float32), (None, None, logits)),
            TensorSpec("boxes", np.dtype(np.float32), (None, None, 4)),
        )
        self.info: ArtifactInfo | None = _describe(model, class_names, (height, width), source, source_digest)
        self.metadata: Mapping[str, str] = {}
        self.min_batch, self.max_batch = 1, None

    @torch.no_grad()
    def run(self, feed: Feed) -> dict[str, Array]:
        """See `Runtime.run`; raises `ArtifactError` in training mode, too."""
        model = self._model
        if model is None:
            raise closed(self.file)
        if model.training:
            raise ArtifactError(f"{self.file} is in training mode; call its eval() first")
        images = check_feed(feed, self.inputs, self.file)["images"]
        if not (images.flags.c_contiguous and images.flags.writeable):  # torch shares memory that it could write to
            images = images.copy()
        logits, boxes = model(torch.from_numpy(images).to(_device_of(model)))
        return {"logits": logits.float().cpu().numpy(), "boxes": boxes.float().cpu().numpy()}

    def close(self) -> None:
        """See `Runtime.close`."""
        self._model = None


def open_model(model: Path | bytes, options: RuntimeOptions) -> TorchRuntime:
    """Open a checkpoint as `open_checkpoint` does. Raises `OptionError` for content: checkpoints may be folders."""
    if isinstance(model, bytes):
        raise OptionError('`runtime="torch"` opens files and folders of checkpoints, not their content')
    return open_checkpoint(model, options.size, options=options)


def open_checkpoint(
    path: Path, size: tuple[int, int] | None = None, *, options: RuntimeOptions | None = None, **load: object
) -> TorchRuntime:
    """Open a checkpoint for images of `size` (height, width); `load` are the arguments of `load_checkpoint`.

    Without `size` it is what the checkpoint names, else 640x640. The device is the CPU unless `options` say otherwise;
    their threads become those of torch in this whole process, which has one number of them.

    Raises what `load_checkpoint` does, `OptionError` for sizes, devices and arguments that don't fit, `DeviceError`
    without a usable GPU.
    """
    options = options or RuntimeOptions()
    device = _find_device(options.device or "cpu")
    if size is not None:
        check_input_size(size)
    checkpoint = load_checkpoint(path, **load)  # type: ignore[arg-type]
    height, width = check_input_size(size or checkpoint.input_size or DEFAULT_INPUT_SIZE)
    if options.threads is not None:
        torch.set_num_threads(int(options.threads))
    model = checkpoint.model.to(device)
    return TorchRuntime(model, checkpoint.class_names, height, width, path.name, checkpoint.digest)


def _find_device(device: str) -> torch.device:
    """Return torch's device. Raises `OptionError` for other names, `DeviceError` for a GPU that is not there."""
    kind, number = cpu_or_cuda(device, "torch")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if (number or 0) >= count:
        raise DeviceError(
            f"torch can't use {device}: it finds {plural(count, 'NVIDIA GPU')}; is this a build of torch with CUDA?"
        )
    return torch.device(kind) if number is None else torch.device(kind, number)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _describe(
    model: nn.Module, class_names: Sequence[str], size: tuple[int, int], source: str, source_digest: str
) -> ArtifactInfo:
    """Return what an export of the model would store; `opset` 0, and no version: it was never written."""
    family = family_of(model)
    facts = family.facts(model, *size)
    return ArtifactInfo(
        class_names=tuple(class_names),
        height=size[0],
        width=size[1],
        batch=None,
        variant=facts.variant,
        layers=facts.layers,
        queries=facts.queries,
        max_detections=min(MAX_DETECTIONS, facts.output_queries * facts.classes),
        precision="fp32",
        sampler=facts.sampler,
        outputs="raw",
        raw_input=False,
        opset=0,
        source=source,
        source_digest=source_digest,
        verified=False,
        version="",
        family=family.name,
        cascade=facts.cascade,
        preprocess=family.preprocess(size, "float32"),
        decoding=family.decoding,
    )
