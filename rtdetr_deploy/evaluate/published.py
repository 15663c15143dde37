"""Published figures, always shown as published and never mixed with what is measured.

All from arXiv 2304.08069 (RT-DETR) and 2407.17140 (RT-DETRv2): COCO val2017, 640x640, batch 1, TensorRT FP16 on a T4;
times include NMS where a model needs it and exclude copies.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "published: T4, TensorRT FP16, COCO val2017 (arXiv 2304.08069, 2407.17140)"


@dataclass(frozen=True)
class Point:
    """AP in percent and images per second of a model, and the family that it belongs to."""

    family: str
    name: str
    ap: float
    fps: float


POINTS = tuple(
    Point(family, name, ap, fps)
    for family, rows in {
        "RT-DETR": (
            ("R18", 46.5, 217), ("R34", 48.9, 161), ("R50-m", 51.3, 145), ("R50", 53.1, 108), ("R101", 54.3, 74),
            ("HGNetv2-L", 53.0, 114), ("HGNetv2-X", 54.8, 74),
        ),
        "RT-DETRv2": (
            ("v2-S", 48.1, 217), ("v2-M*", 49.9, 161), ("v2-M", 51.9, 145), ("v2-L", 53.4, 108), ("v2-X", 54.3, 74),
        ),
        "YOLO + NMS": (
            ("v5-L", 49.0, 54), ("v5-X", 50.7, 43), ("PP-YOLOE-L", 51.4, 94), ("PP-YOLOE-X", 52.3, 60),
            ("v6-L", 52.8, 99), ("v7-L", 51.2, 55), ("v7-X", 52.9, 45), ("v8-S", 44.9, 136), ("v8-M", 50.2, 97),
            ("v8-L", 52.9, 71), ("v8-X", 53.9, 50),
        ),
    }.items()
    for name, ap, fps in rows
)  # fmt: skip

COMPLEXITY = {
    "r18": (20, 60),
    "r34": (31, 92),
    "r50-m": (36, 100),
    "r50": (42, 136),
    "r101": (76, 259),
    "hgnetv2-l": (32, 110),
    "hgnetv2-x": (67, 234),
}
"""Millions of parameters and GFLOPs at 640x640 by variant (arXiv 2304.08069, table 2, and the released model zoo)."""

DECODER_LAYERS = {6: (53.1, 9.3), 5: (53.0, 8.8), 4: (52.7, 8.3), 3: (52.4, 7.9), 2: (51.3, 7.5), 1: (49.1, 7.0)}
"""AP in percent and milliseconds of R50, trained with 6 decoder layers, by the number that is run (Table 5)."""


@dataclass(frozen=True)
class DecoderRow:
    """AP in percent and milliseconds of R50 with fewer layers; its time and AP relative to a number of its layers."""

    ap: float
    milliseconds: float
    ratio: float
    change: float


def published_decoder(layers: int) -> dict[int, DecoderRow]:
    """Return R50's rows with up to `layers` decoder layers, relative to that with exactly `layers`; empty above 6."""
    if layers not in DECODER_LAYERS:
        return {}
    all_ap, all_time = DECODER_LAYERS[layers]
    return {
        count: DecoderRow(ap, time, time / all_time, ap - all_ap)
        for count, (ap, time) in DECODER_LAYERS.items()
        if count <= layers
    }


ENCODERS = {
    "A": (43.0, 31, 7.2),
    "B": (44.9, 32, 11.1),
    "C": (45.6, 32, 13.3),
    "D": (46.4, 35, 12.2),
    "D_S5": (46.8, 35, 7.9),
    "E": (47.9, 42, 9.3),
}
"""AP in percent, millions of parameters and milliseconds of R50 with each encoder (Table 3)."""

NMS = {
    (0.001, 0.5): (52.1, 2.24),
    (0.001, 0.6): (52.6, 2.29),
    (0.001, 0.8): (52.8, 2.46),
    (0.001, 0.7): (52.9, 2.36),
    (0.01, 0.7): (52.4, 1.73),
    (0.05, 0.7): (51.2, 1.06),
}
"""AP in percent and milliseconds of YOLOv8-L's NMS kernel by score and IoU threshold (Table 2)."""
