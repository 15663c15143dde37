"""Which file holds the weights that a path names; without torch, so that a missing file is reported at once."""

from __future__ import annotations

from pathlib import Path

from rtdetr_deploy.errors import CheckpointError
from rtdetr_deploy.files import require_file

HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin")
_EXPORTED = {".onnx", ".engine", ".plan", ".trt"}


def is_exported(path: str | Path) -> bool:
    """Tell whether `path` is called like a model file that a runtime opens, rather than a checkpoint."""
    return Path(path).suffix.lower() in _EXPORTED


def is_checkpoint(path: str | Path) -> bool:
    """Tell whether `path` is called like a checkpoint, or is a folder of Hugging Face's `save_pretrained`."""
    path = Path(path)
    return path.suffix.lower() in CHECKPOINT_SUFFIXES or path.is_dir()


def find_weights(path: str | Path) -> Path:
    """Return `path`, or the file of weights in it where it is a folder of Hugging Face's `save_pretrained`.

    Raises `CheckpointError` for what is missing or can't be read, and for exported models.
    """
    path = Path(path)
    if path.is_dir():
        found = next((path / name for name in HUGGING_FACE_FILES if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"{path} is a folder without {' or '.join(HUGGING_FACE_FILES)}; name the file in it")
        path = found
    require_file(path, CheckpointError)
    if is_exported(path):
        raise CheckpointError(f"{path} is an exported model already; expected a .pth, .pt or .safetensors file")
    return path
