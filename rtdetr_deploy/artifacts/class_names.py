"""Names of the classes that a model knows, in the order of its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rtdetr_deploy.artifacts.metadata import NamesSource
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.files import reason, refuse_named_pipe
from rtdetr_deploy.words import plural

Classes = Iterable[int | str] | int | str
"""Which classes are meant: names and indices, or one of them."""

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
    refuse_named_pipe(path, OptionError)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"can't read class names from {path}: {reason(error)}") from error
    names = tuple(line.strip() for line in lines)
    if not names or not all(names):
        raise OptionError(f"{path} must hold one class name per line, without empty lines between them")
    return names


def resolve_class_names(
    given: Sequence[str] | str | Path | None, stored: Sequence[str] | None, count: int | None
) -> tuple[tuple[str, ...], NamesSource]:
    """Return the name of each of a model's `count` classes (None: unknown), and where the names come from.

    That is "given" (a list, or a file of names), else "file" (those `stored` with the model), else "coco" for 80
    classes, "numbered" for other numbers, and "unknown" without names. Raises `OptionError` as `check_class_names`.
    """
    names = read_class_names(given) if isinstance(given, (str, Path)) else given
    if names is not None:
        return (tuple(names) if count is None else check_class_names(names, count, "`class_names`")), "given"
    if stored is not None:
        return tuple(stored), "file"
    if count is None:
        return (), "unknown"
    return default_class_names(count), "coco" if count == len(COCO_NAMES) else "numbered"


def as_classes(classes: Classes) -> list[int | str]:
    """Return the names and indices as a list. Raises `OptionError` for what is neither, e.g. True or 1.0."""
    if isinstance(classes, (bool, bytes, bytearray, memoryview)) or not isinstance(
        classes, (int, np.integer, str, Iterable)
    ):
        raise OptionError(f"`classes` is {classes!r}, expected names or indices")
    wanted = [classes] if isinstance(classes, (int, np.integer, str)) else list(classes)
    for item in wanted:
        if isinstance(item, bool) or not isinstance(item, (int, np.integer, str)):
            raise OptionError(f"class {item!r} is neither a name nor an index")
    return [item if isinstance(item, str) else int(item) for item in wanted]


def find_labels(classes: Iterable[int | str], names: Sequence[str]) -> frozenset[int]:
    """Return the indices that names and indices stand for; `names` is empty where a model doesn't tell them.

    Raises `OptionError` for a class that is not there.
    """
    labels: set[int] = set()
    for item in classes:
        if isinstance(item, str):
            if item not in names:
                known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise OptionError(f"the model has no class {item!r}; it knows {known or 'no class names'}")
            labels.update(index for index, name in enumerate(names) if name == item)
        elif item < 0 or (names and item >= len(names)):
            expected = f"outside 0 .. {len(names) - 1}" if names else "negative"
            raise OptionError(f"class index {item} is {expected}")
        else:
            labels.add(item)
    return frozenset(labels)


def check_class_names(names: Sequence[str], count: int, origin: str) -> tuple[str, ...]:
    """Return `names` as a tuple; `OptionError` unless there are `count` of them."""
    if len(names) != count:
        raise OptionError(
            f"{origin} names {plural(len(names), 'class')}, but the model has {count}; give one name per class"
        )
    return tuple(str(name) for name in names)
