"""The PyTorch reference model; the only part of `rtdetr_deploy` that imports torch."""

from rtdetr_deploy.model.checkpoints.load import Checkpoint, load_checkpoint
from rtdetr_deploy.model.reparameterize import reparameterize
from rtdetr_deploy.model.rtdetr import RTDETR
from rtdetr_deploy.model.variants import VARIANTS, Variant

__all__ = ["RTDETR", "VARIANTS", "Checkpoint", "Variant", "load_checkpoint", "reparameterize"]
