"""Where the time of an FP16 model goes, part by part, and whether folding the decoder's projections saves any."""

from __future__ import annotations

from typing import Any

from gpu_check.check import Figures, Situation
from gpu_check.checks.arrays import require_torch
from gpu_check.checks.sampler import time_graph
from rtdetr_deploy.packages import needed_for

VARIANTS = ("r18", "r50")
SIZE = 640
WIDTH = 256


def check_parts(situation: Situation) -> Figures:
    """Time backbone, encoder and decoder of R18 and R50 in torch FP16 under CUDA graphs, and folded projections."""
    torch = require_torch()
    device = torch.device("cuda", situation.gpu.number)
    figures: Figures = {}
    # Weights are FP16; autocast only brings what the model computes in FP32 (reference boxes) back to them.
    with torch.cuda.device(device), torch.no_grad(), torch.autocast("cuda", torch.float16):
        for name in VARIANTS:
            figures[name] = time_parts(torch, name, device)
        for layers in (3, 6):
            plain, folded = time_projections(torch, layers, device)
            figures[f"projections of {layers} layers"] = {"plain_ms": plain, "folded_ms": folded}
    return figures


def make_model(name: str, device: Any) -> Any:
    """Return a variant with random weights in FP16, convolutions folded, sampling by gathers."""
    with needed_for("this check", "export"):
        from rtdetr_deploy.model import RTDETR, VARIANTS
        from rtdetr_deploy.model.random_weights import fill_randomly
        from rtdetr_deploy.model.reparameterize import reparameterize
    model = RTDETR(VARIANTS[name])
    fill_randomly(model, seed=0)
    reparameterize(model.eval())
    model.use_sampler("gather")
    return model.to(device).half()


def time_parts(torch: Any, name: str, device: Any) -> Figures:
    """Return the milliseconds of each part, on the outputs of the part before."""
    model = make_model(name, device)
    images = torch.rand((1, 3, SIZE, SIZE), device=device).half()
    backbone = model.backbone(images)
    maps = model.encoder(backbone)
    work = {
        "backbone_ms": lambda: model.backbone(images)[-1],
        "encoder_ms": lambda: model.encoder(backbone)[-1],
        "decoder_ms": lambda: model.decoder(maps).boxes[-1],
        "all_ms": lambda: model(images).boxes,
    }
    return {part: time_graph(torch, one)[0] for part, one in work.items()}


def time_projections(torch: Any, layers: int, device: Any) -> tuple[float, float]:
    """Return milliseconds of the decoder's projections of all tokens, one after the other, and folded into one each.

    Plain: a 1x1 convolution per level, laid out as tokens, then a linear layer per decoder layer and one for the
    selection. Folded: one linear layer per level that gives all of their results.
    """
    half = {"device": device, "dtype": torch.float16}
    maps = [torch.randn((1, WIDTH, SIZE // stride, SIZE // stride), **half) for stride in (8, 16, 32)]
    convolutions = [torch.nn.Conv2d(WIDTH, WIDTH, 1).to(**half) for _ in maps]
    linears = [torch.nn.Linear(WIDTH, WIDTH).to(**half) for _ in range(layers + 1)]
    wide = [torch.nn.Conv2d(WIDTH, WIDTH * (layers + 1), 1).to(**half) for _ in maps]

    def plain() -> Any:
        tokens = torch.cat([one(x).flatten(2).transpose(1, 2) for one, x in zip(convolutions, maps, strict=True)], 1)
        return torch.stack([linear(tokens) for linear in linears])

    def folded() -> Any:
        return torch.cat([one(x).flatten(2).transpose(1, 2) for one, x in zip(wide, maps, strict=True)], 1)

    return time_graph(torch, plain)[0], time_graph(torch, folded)[0]
