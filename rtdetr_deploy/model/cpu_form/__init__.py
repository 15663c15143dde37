"""The same computation as CPUs run it faster: less arithmetic, and no copies between layouts.

What changes, in a folded model (see `rtdetr_deploy.model.reparameterize`), for exports that a CPU will run:

decoder    `input_proj` goes into what reads it, the selection's projection and the value projections of all layers,
           which become convolutions of the encoder's maps; layers sample from one table of all their values
selection  tokens without a valid anchor are put in their place behind the projection, not in front of it
encoder    fusion blocks project a coarse map before it is upsampled, with a quarter of the products; the encoder's
           `input_proj` goes into them where that takes fewer products. Not in INT8: a concatenation of integers is
           cheap there, and an addition in front of an activation is not
sampling   offsets come with the axes in front of the points, as the cells want them

GPUs have a form of their own (`Family.fuse_for_gpu`), whose graphs are left as they are.
"""

from __future__ import annotations

from rtdetr_deploy.model.cpu_form.decoder import CpuDecoder
from rtdetr_deploy.model.cpu_form.encoder import CpuEncoder
from rtdetr_deploy.model.hybrid_encoder import HybridEncoder
from rtdetr_deploy.model.rtdetr import RTDETR

__all__ = ["CpuDecoder", "CpuEncoder", "to_cpu_form"]


def to_cpu_form(model: RTDETR, precision: str) -> None:
    """Change a folded model, its sampler chosen, in place, for a file of `precision`.

    GridSample takes other tables than one for all layers: a model that samples by it keeps its decoder. Encoders other
    than RT-DETR's are kept.
    """
    if precision != "int8" and isinstance(model.encoder, HybridEncoder):
        model.encoder = CpuEncoder(model.encoder)
    if model.sampler != "grid":
        model.decoder = CpuDecoder(model.decoder)
