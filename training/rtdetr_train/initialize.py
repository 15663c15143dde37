"""The model to train: with starting values, or from a checkpoint, with new heads for another number of classes.

Starting values are as in the released training code, except for smaller weights of the class heads: these start at a
probability of 0.01, box heads at "no change", sampling offsets on rings around the reference point, attention weights
equal.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from rtdetr_deploy.model import RTDETR, load_checkpoint
from rtdetr_deploy.model.decoder import Decoder, DecoderLayer, Mlp
from rtdetr_deploy.model.layers.deformable_attention import DeformableAttention
from rtdetr_deploy.model.variants import HEADS, find_variant
from rtdetr_train.options import DEFAULT_VARIANT, TrainOptions

PRIOR = 0.01


def build_model(options: TrainOptions, class_names: tuple[str, ...]) -> RTDETR:
    """Return the model to train: new, or from `options.weights` with its heads reset for other numbers of classes."""
    if options.weights is None:
        variant = find_variant(options.variant or DEFAULT_VARIANT)
        model = RTDETR(replace(variant, classes=len(class_names), queries=options.queries), options.layers)
        initialize(model)
    else:
        source = load_checkpoint(options.weights, variant=options.variant, layers=options.layers).model
        model = RTDETR(replace(source.variant, classes=len(class_names), queries=options.queries), source.layers)
        own, given = model.state_dict(), source.state_dict()
        fitting = {name: value for name, value in given.items() if value.shape == own[name].shape}
        model.load_state_dict({**own, **fitting}, strict=True)
        if source.variant.classes != len(class_names):
            initialize_class_heads(model.decoder)
    for module in frozen_modules(model, options):
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    return model


def frozen_modules(model: RTDETR, options: TrainOptions) -> list[nn.Module]:
    """Return what `options.freeze` keeps as it is: the backbone, or its batch normalization."""
    if options.freeze == "backbone":
        return [model.backbone]
    if options.freeze == "norms":
        return [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    return []


@torch.no_grad()
def initialize(model: RTDETR) -> None:
    """Set the starting values of a new model; the rest keeps torch's defaults."""
    decoder = model.decoder
    initialize_class_heads(decoder)
    for head in (decoder.enc_bbox_head, *decoder.dec_bbox_head):
        assert isinstance(head, Mlp)
        for parameter in head.layers[-1].parameters():
            nn.init.zeros_(parameter)
    for linear in (decoder.enc_output.proj, *decoder.query_pos_head.layers):
        nn.init.xavier_uniform_(linear.weight)
    for layer in decoder.decoder.layers:
        assert isinstance(layer, DecoderLayer)
        _initialize_attention(layer.cross_attn)


@torch.no_grad()
def initialize_class_heads(decoder: Decoder) -> None:
    """Reset what depends on the number of classes: class heads and the denoising embedding."""
    bias = -math.log((1 - PRIOR) / PRIOR)
    for head in (decoder.enc_score_head, *decoder.dec_score_head):
        nn.init.constant_(head.bias, bias)
        nn.init.normal_(head.weight, std=0.01)
    nn.init.normal_(decoder.denoising_class_embed.weight)
    nn.init.zeros_(decoder.denoising_class_embed.weight[-1])


def _initialize_attention(attention: DeformableAttention) -> None:
    """Head h looks in direction 2 pi h / heads; point p of a level starts p + 1 steps away."""
    nn.init.zeros_(attention.sampling_offsets.weight)
    angle = torch.arange(HEADS) * (2.0 * math.pi / HEADS)
    direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
    direction = direction / direction.abs().amax(dim=-1, keepdim=True)
    steps = torch.cat([torch.arange(1, points + 1) for points in attention.points])
    attention.sampling_offsets.bias.copy_((direction[:, None] * steps[None, :, None]).flatten())
    nn.init.zeros_(attention.attention_weights.weight)
    nn.init.zeros_(attention.attention_weights.bias)
    nn.init.xavier_uniform_(attention.value_proj.weight)
    nn.init.zeros_(attention.value_proj.bias)
    nn.init.xavier_uniform_(attention.output_proj.weight)
    nn.init.zeros_(attention.output_proj.bias)
