"""The PyTorch reference model; with `runtimes.eager` the only part of `rtdetr_deploy` that imports torch.

One concern of the export shows inside the model: sizes are read as `int(x.shape[1])`, and tensors take their new shape
by `reshape(-1, ...)`. The tracer keeps an `x.shape[1]` as nodes (Shape, Gather, Concat) that compute the size anew in
every run; an `int` is folded into a constant, as H x W, D and Q are known when a file is written. The batch alone must
stay dynamic: it is the `-1`, and `x.shape[0]` without `int` where an index needs it.
"""

from rtdetr_deploy.model.checkpoints.load import Checkpoint, load_checkpoint
from rtdetr_deploy.model.reparameterize import reparameterize
from rtdetr_deploy.model.rtdetr import RTDETR
from rtdetr_deploy.model.variants import VARIANTS, Variant

__all__ = ["RTDETR", "VARIANTS", "Checkpoint", "Variant", "load_checkpoint", "reparameterize"]
