"""Reading of COCO jsons, for training and evaluation alike: what is taken, what is left out, what is refused.

    bbox   [x, y, width, height] in pixels of the image as it is shown (turned as its EXIF says)

Ids of annotations carry no meaning here and are not read: converters leave them out, repeat them, or count from 0.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from rtdetr_deploy.errors import OptionError

MAX_ID = 2**63 - 1
"""What the evaluation's own numbers hold."""
WITHOUT_AREA, OUTSIDE, COPY = "without area", "outside of their image", "exact copies of another"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoObject:
    """An annotation: `bbox` as above, `area` in pixels (of its outline, if it has one), `crowd` for many in one box."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    crowd: bool


@dataclass(frozen=True)
class CocoJson:
    """The (id, file) of every image, the (id, name) of every category by id, and the objects in the file's order."""

    path: Path
    images: tuple[tuple[int, Path], ...]
    categories: tuple[tuple[int, str], ...]
    objects: tuple[CocoObject, ...]


def read_coco_json(path: str | Path, images: str | Path) -> CocoJson:
    """Read a COCO json whose image files lie in the folder `images`.

    A missing `area` is that of the box, a missing `iscrowd` is 0. Objects without area or wholly outside of their
    image, and exact copies of another, are left out, which is logged as a warning with their numbers. Raises
    `OptionError` for what is not a COCO json, a missing image file, repeated or unknown ids, and boxes that are not
    four finite numbers or have a negative side.
    """
    path, folder = Path(path), Path(images)
    content = _parse(path)
    entries = _unique(_images(content, folder, path), "image", path)
    categories = _unique(_categories(content, path), "category", path)
    objects = list(_objects(content, path))
    for title, found in (("images", entries), ("categories", categories), ("annotations", objects)):
        if not found:
            raise OptionError(f"{path} holds no {title}")
    _check_known("image_id", [thing.image_id for thing in objects], entries, path)
    _check_known("category_id", [thing.category_id for thing in objects], categories, path)
    _check_pixels(objects, path)
    files = {number: file for number, (file, _) in entries.items()}
    _check_files(list(files.values()), folder, path)
    sides = {number: side or _longer_side(file) for number, (file, side) in entries.items()}
    _believe_files(objects, sides, files, path)
    return CocoJson(path, tuple(files.items()), tuple(sorted(categories.items())), _usable(objects, sides, path))


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"can't read annotations {path}: {getattr(error, 'strerror', None) or error}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not a COCO json: {_one_line(error)}") from error
    return content if isinstance(content, Mapping) else _refuse(path, "its content is not an object in braces")


def _one_line(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]


def _refuse(path: Path, reason: str) -> NoReturn:
    raise OptionError(f"{path} is not a COCO json with images, annotations and categories: {reason}")


def _entries(content: Mapping[str, Any], key: str, path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the entries of the list called `key`, each with words that say which it is."""
    entries = content.get(key)
    if not isinstance(entries, list):
        _refuse(path, f"it has no list called {key}")
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            _refuse(path, f"entry {index} of {key} is not an object in braces")
    return [(f"entry {index} of {key}", entry) for index, entry in enumerate(entries)]


def _whole(entry: Mapping[str, Any], key: str, where: str, path: Path) -> int:
    """Return an id as a whole number; some converters write it as text or as 3.0."""
    value = entry.get(key)
    if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_ID:
        _refuse(path, f"{where} has no whole number below 2**63 as {key}")
    return value


def _images(content: Mapping[str, Any], folder: Path, path: Path) -> Iterator[tuple[int, tuple[Path, float | None]]]:
    """Yield id, file and longer side of every image; the side is None where the json does not tell it.

    The longer side alone, because many jsons hold the size of a photograph before it is turned.
    """
    for where, entry in _entries(content, "images", path):
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            _refuse(path, f"{where} has no file_name")
        sides = _numbers([entry.get("width"), entry.get("height")])
        yield _whole(entry, "id", where, path), (folder / name, max(sides) if sides and min(sides) > 0 else None)


def _longer_side(file: Path) -> float:
    """Return the longer side of an image, of which only the header is read; infinity if it can't be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of very large images; what can't be used is said when it is read
            with Image.open(file) as image:
                return float(max(image.size))
    except Exception:  # a damaged file fails in many ways
        return math.inf


def _categories(content: Mapping[str, Any], path: Path) -> Iterator[tuple[int, str]]:
    for where, entry in _entries(content, "categories", path):
        name = entry.get("name")
        if not isinstance(name, (str, int, float)):
            _refuse(path, f"{where} has no name")
        yield _whole(entry, "id", where, path), str(name)


def _unique(entries: Iterator[tuple[int, Any]], kind: str, path: Path) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for number, value in entries:
        if number in found:
            raise OptionError(f"{path} lists {kind} id {number} more than once; every {kind} needs an id of its own")
        found[number] = value
    return found


def _objects(content: Mapping[str, Any], path: Path) -> Iterator[CocoObject]:
    for where, entry in _entries(content, "annotations", path):
        bbox = _numbers(entry.get("bbox"))
        if len(bbox) != 4:
            _refuse(path, f"the bbox of {where} is not four finite numbers [x, y, width, height]")
        if bbox[2] < 0 or bbox[3] < 0:
            _refuse(path, f"the bbox of {where} has a negative side; expected [x, y, width, height]")
        crowd = entry.get("iscrowd") or 0
        if crowd not in (0, 1):
            _refuse(path, f"iscrowd of {where} is neither 0 nor 1")
        area = [bbox[2] * bbox[3]] if entry.get("area") is None else _numbers([entry["area"]])
        if not area or area[0] < 0:
            _refuse(path, f"the area of {where} is not a finite number from 0 up")
        image, category = (_whole(entry, key, where, path) for key in ("image_id", "category_id"))
        yield CocoObject(image, category, (bbox[0], bbox[1], bbox[2], bbox[3]), area[0], bool(crowd))


def _numbers(values: Any) -> tuple[float, ...]:
    """Return `values` as floats if they are a list of finite numbers, else nothing."""
    try:
        fits = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        numbers = tuple(float(value) for value in values) if fits else ()
    except OverflowError:
        return ()
    return numbers if all(math.isfinite(value) for value in numbers) else ()


def _check_known(key: str, numbers: Sequence[int], known: Mapping[int, Any], path: Path) -> None:
    """Raise `OptionError` for objects of unknown images or categories, which would count as missed."""
    strays = [number for number in numbers if number not in known]
    if strays:
        raise OptionError(
            f"{path} has annotations with an unknown {key} ({len(strays)} of {len(numbers)}; the first is {strays[0]})"
        )


def _check_pixels(objects: Sequence[CocoObject], path: Path) -> None:
    if all(abs(value) <= 1 for thing in objects for value in thing.bbox) and any(any(o.bbox) for o in objects):
        raise OptionError(f"no box of {path} reaches beyond 1: expected [x, y, width, height] in pixels, not in shares")


def _check_files(files: Sequence[Path], folder: Path, path: Path) -> None:
    missing = [file for file in files if not os.path.isfile(file)]  # Path.is_file raises for names that are too long
    if missing:
        raise OptionError(
            f"images of {path} are not in {folder} ({len(missing)} of {len(files)}; the first is {missing[0].name})"
        )


def _believe_files(
    objects: Sequence[CocoObject], sides: dict[int, float], files: Mapping[int, Path], path: Path
) -> None:
    """Correct, in place, the longer side of images that would have objects outside: the json's size may be stale."""
    suspects = {thing.image_id for thing in objects if _is_outside(thing, sides[thing.image_id])}
    told = {number: sides[number] for number in suspects}
    sides.update((number, _longer_side(files[number])) for number in suspects)
    stale = sum(told[number] != sides[number] for number in suspects)
    if stale:
        _LOG.warning("%s: width and height of %d images are not those of their files, which count", path, stale)


def _is_outside(thing: CocoObject, side: float) -> bool:
    x, y, width, height = thing.bbox
    return x >= side or y >= side or x + width <= 0 or y + height <= 0


def _usable(objects: Sequence[CocoObject], sides: Mapping[int, float], path: Path) -> tuple[CocoObject, ...]:
    """Return the objects that can be found in an image, each once; say how many others there are."""
    kept: dict[tuple[int, int, tuple[float, ...], bool], CocoObject] = {}
    left_out = {WITHOUT_AREA: 0, OUTSIDE: 0, COPY: 0}
    for thing in objects:
        _, _, width, height = thing.bbox
        key = (thing.image_id, thing.category_id, thing.bbox, thing.crowd)
        if width == 0 or height == 0:
            left_out[WITHOUT_AREA] += 1
        elif _is_outside(thing, sides[thing.image_id]):
            left_out[OUTSIDE] += 1
        elif key in kept:
            left_out[COPY] += 1
        else:
            kept[key] = thing
    reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items() if count)
    if not kept:
        raise OptionError(f"none of the {len(objects)} annotations of {path} can be used ({reasons})")
    if reasons:
        _LOG.warning("%s: some of the %d annotations are left out (%s)", path, len(objects), reasons)
    return tuple(kept.values())
