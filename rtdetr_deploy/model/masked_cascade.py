"""The cascade computed another way, as the reference that files with one are compared with: nothing is cut.

All queries run through all layers; from the cut on, those that were left out are hidden from the others, and at the
end their rows are dropped. Slower, and the same function: a query reads others by self-attention alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rtdetr_deploy.model.decoder import Decoder

HIDDEN = float("-inf")


def decode_by_masks(decoder: Decoder, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return logits (1, N, K) and boxes (1, N, 4) cxcywh for the maps (1, D, H/s, W/s) of one image.

    `decoder` has a cascade.
    """
    assert decoder.cascade is not None
    selection, memory, sizes = decoder.select(maps)
    content, reference = selection.content, selection.reference
    hidden, kept = None, None
    for number, layer in enumerate(decoder.decoder.layers):
        box = decoder.reference_box(reference)
        content = layer(content, decoder.query_pos_head(box), box, memory, sizes, hidden)
        logits = decoder.dec_score_head[number](content)
        boxes, reference = decoder.refinement(reference, decoder.dec_bbox_head[number](content))
        if number + 1 == decoder.cascade.after:
            kept = _best(logits[0], decoder.cascade.keep)
            hidden = torch.full((content.shape[1],) * 2, HIDDEN, dtype=content.dtype, device=content.device)
            hidden[:, kept] = 0.0
    assert kept is not None
    assert len(content) == 1
    return logits[:, kept], boxes[:, kept]


def cut_margin(decoder: Decoder, maps: list[Tensor]) -> float:
    """Return by how much (logits) the last query of one image that goes on beats the first that is left out.

    Infinite where none is left out. `decoder` has a cascade.
    """
    cut = decoder.cascade
    assert cut is not None
    selection, memory, sizes = decoder.select(maps)
    content, reference = selection.content, selection.reference
    for number, layer in enumerate(decoder.decoder.layers[: cut.after]):
        box = decoder.reference_box(reference)
        content = layer(content, decoder.query_pos_head(box), box, memory, sizes)
        reference = decoder.refinement(reference, decoder.dec_bbox_head[number](content))[1]
    scores = decoder.dec_score_head[cut.after - 1](content)[0].amax(dim=-1).sort(descending=True).values
    return float("inf") if len(scores) <= cut.keep else float(scores[cut.keep - 1] - scores[cut.keep])


def _best(logits: Tensor, count: int) -> Tensor:
    """Return the `count` rows of class logits (Q, K) with the largest maximum; of equal ones the first."""
    return torch.sort(logits.max(dim=1).values, stable=True, descending=True).indices[:count]
