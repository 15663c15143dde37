"""Names of the classes that a model knows, in the order of its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rtdetr_deploy.errors import OptionError

COCO_NAMES: tuple[str, ...] = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
    teddy bear, hair drier, toothbrush""".replace("\n    ", " ").split(", ")
)
"""COCO's 80 classes in the order of a released checkpoint's outputs (0 .. 79)."""

_UNUSED_COCO_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})

COCO_CATEGORY_IDS: tuple[int, ...] = tuple(index for index in range(1, 91) if index not in _UNUSED_COCO_IDS)
"""Category id in COCO's json (1 .. 90, with gaps) of each of the 80 classes."""


def default_class_names(count: int) -> tuple[str, ...]:
    """COCO's names for 80 classes, otherwise `class 0`, `class 1`, ..."""
    return COCO_NAMES if count == len(COCO_NAMES) else tuple(f"class {index}" for index in range(count))


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Read one class name per line (UTF-8); empty lines at the end are ignored.

    Raises `OptionError` when the file can't be read, is empty, or has an empty line between names.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"can't read class names from {path}: {error}") from error
    names = tuple(line.strip() for line in lines)
    if not names or not all(names):
        raise OptionError(f"{path} must hold one class name per line, without empty lines between them")
    return names


def check_class_names(names: Sequence[str], count: int, origin: str) -> tuple[str, ...]:
    """Return `names` as a tuple; `OptionError` unless there are `count` of them."""
    if len(names) != count:
        raise OptionError(f"{origin} names {len(names)} classes, but the model has {count}; give one name per class")
    return tuple(str(name) for name in names)
