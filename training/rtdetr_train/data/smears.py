"""Procedural pictures in the manner of stained blood smears, with their objects.

Red cells overlap in any number, white cells have a lobed nucleus, platelets are small and irregular; unlabelled specks,
uneven light and noise disturb. Free of any licence, they serve tests, the demo picture, and pre-training before real
data is used.
Every picture is determined by its seed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.files import write_bytes
from rtdetr_train.data.coco import Sample

CLASS_NAMES = ("RBC", "WBC", "Platelets")
RED, WHITE, PLATELET = range(3)
SIZE = (480, 640)
MIN_VISIBLE = 0.2
"""Share of an object that must not be covered by later ones, else it is not labelled."""

Rng = np.random.Generator
Image = NDArray[np.float32]
Point = NDArray[np.float64]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """An object's coverage of the picture, `alpha` (h, w) in [0, 1], its box, and its class."""

    alpha: Image
    box: tuple[float, float, float, float]
    label: int


def draw_smear(seed: int, height: int = SIZE[0], width: int = SIZE[1]) -> Sample:
    """Return the smear of `seed`: an RGB picture and the boxes of its visible cells."""
    rng = np.random.default_rng(seed)
    image = _background(rng, height, width)
    unit = min(height, width) / 480.0
    cells: list[Cell] = []
    for label in _plan(rng):
        centre = rng.uniform((0.0, 0.0), (width, height))
        if label == RED:
            cell = _draw_red(image, rng, centre, unit)
        elif label == WHITE:
            cell = _draw_white(image, rng, centre, unit)
        else:
            cell = _draw_platelet(image, rng, centre, unit)
        cells.append(cell)
    _disturb(image, rng, unit)
    kept = [cell for index, cell in enumerate(cells) if _visible(cell, cells[index + 1 :]) >= MIN_VISIBLE]
    boxes = np.array([cell.box for cell in kept], np.float32).reshape(-1, 4)
    labels = np.array([cell.label for cell in kept], np.int64)
    return Sample(image.clip(0, 255).astype(np.uint8), boxes, labels).keep_usable()


def write_smears(folder: Path, count: int, first_seed: int = 0) -> Path:
    """Write smears `first_seed` .. `first_seed + count - 1` as JPEG with a COCO json, and return the json's path."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for seed in range(first_seed, first_seed + count):
        sample = draw_smear(seed)
        height, width = sample.image.shape[:2]
        name = f"smear_{seed:05d}.jpg"
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
        write_bytes(folder / name, encoded.tobytes())
        images.append({"id": seed, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append({
                "id": len(annotations) + 1, "image_id": seed, "category_id": label + 1,
                "bbox": box, "area": box[2] * box[3], "iscrowd": 0,
            })  # fmt: skip
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)]
    path = folder / "annotations.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_bytes(path, json.dumps(content).encode())
    return path


def _plan(rng: Rng) -> list[int]:
    """Return the classes to draw, bottom first."""
    labels = [RED] * int(rng.integers(6, 24)) + [WHITE] * int(rng.choice([0, 1, 1, 1, 2]))
    labels += [PLATELET] * int(rng.poisson(1.2))
    return [labels[index] for index in rng.permutation(len(labels))]


def _background(rng: Rng, height: int, width: int) -> Image:
    """Return a pale field, lit unevenly."""
    color = np.array([222, 218, 222]) + rng.normal(0, 10, 3)
    coarse = (rng.normal(0, 7, (4, 5, 1)) + rng.normal(0, 2, (4, 5, 3))).astype(np.float32)
    shade = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (shade + color).astype(np.float32)


def _blob(shape: tuple[int, ...], rng: Rng, centre: Point, radius: float, wobble: float) -> tuple[Image, Image]:
    """Return the coverage of a wobbly ellipse and the distance from its centre in radii (1 at its edge)."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    dx, dy = x - centre[0], y - centre[1]
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.82, 1.0)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) / flat
    angle = np.arctan2(across, along)
    edge = radius * (1 + sum(rng.normal(0, wobble / n) * np.cos(n * angle + rng.uniform(0, 6.3)) for n in (2, 3, 4, 5)))
    distance = (np.hypot(along, across) / edge).astype(np.float32)
    alpha = np.clip((1.0 - distance) * radius / 1.5 + 0.5, 0.0, 1.0).astype(np.float32)
    return alpha, distance


def _paint(image: Image, alpha: Image, color: NDArray[np.float64] | Image, opacity: float) -> None:
    share = (alpha * opacity)[..., None]
    image *= 1.0 - share
    image += share * color


def _box(alpha: Image) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero((alpha > 0.5).any(axis=1)), np.flatnonzero((alpha > 0.5).any(axis=0))
    if not len(rows) or not len(columns):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _draw_red(image: Image, rng: Rng, centre: Point, unit: float) -> Cell:
    """Paint a disc with a pale middle and a darker rim; translucent where cells overlap."""
    alpha, distance = _blob(image.shape, rng, centre, rng.uniform(42, 60) * unit, 0.04)
    color = np.array([204, 164, 160]) + rng.normal(0, 8, 3)
    pallor = np.exp(-((distance / rng.uniform(0.3, 0.55)) ** 2)) * rng.uniform(5, 40)
    rim = np.exp(-(((distance - 0.93) / 0.07) ** 2)) * rng.uniform(4, 22)
    _paint(image, alpha, (color + (pallor - rim)[..., None]).astype(np.float32), rng.uniform(0.75, 0.95))
    return Cell(alpha, _box(alpha), RED)


def _draw_white(image: Image, rng: Rng, centre: Point, unit: float) -> Cell:
    """Paint a pale cell body and a nucleus of one to four lobes."""
    radius = rng.uniform(58, 88) * unit
    alpha, _ = _blob(image.shape, rng, centre, radius, 0.05)
    _paint(image, alpha, np.array([196, 186, 212]) + rng.normal(0, 8, 3), rng.uniform(0.6, 0.9))
    color = np.array([112, 78, 158]) + rng.normal(0, 12, 3)
    start = rng.uniform(0, 6.3)
    lobes = int(rng.integers(1, 5))
    for lobe in range(lobes):
        away = radius * (0.35 if lobes > 1 else 0.05)
        angle = start + lobe * 6.283 / lobes + rng.normal(0, 0.2)
        place = centre + away * np.array([np.cos(angle), np.sin(angle)])
        part, distance = _blob(
            image.shape, rng, place, radius * rng.uniform(0.38, 0.5) * (1.5 if lobes == 1 else 1), 0.08
        )
        texture = (distance * 14)[..., None] + cv2.GaussianBlur(_noise(rng, image.shape), (0, 0), 2 * unit) * 30
        _paint(image, part * alpha, (color + texture).astype(np.float32), 0.92)
    return Cell(alpha, _box(alpha), WHITE)


def _draw_platelet(image: Image, rng: Rng, centre: Point, unit: float) -> Cell:
    """Paint a small granular spot."""
    alpha, distance = _blob(image.shape, rng, centre, rng.uniform(10, 20) * unit, 0.12)
    color = np.array([150, 116, 176]) + rng.normal(0, 12, 3)
    _paint(image, alpha, (color + (distance * 22)[..., None]).astype(np.float32), rng.uniform(0.7, 0.95))
    return Cell(alpha, _box(alpha), PLATELET)


def _disturb(image: Image, rng: Rng, unit: float) -> None:
    """Add unlabelled specks, blur and sensor noise."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(0, 7))):
        alpha, _ = _blob(image.shape, rng, rng.uniform((0.0, 0.0), (width, height)), rng.uniform(1.5, 5) * unit, 0.1)
        _paint(image, alpha, np.array([170, 150, 165]) + rng.normal(0, 25, 3), rng.uniform(0.4, 0.9))
    image[:] = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.4) * unit)
    image += _noise(rng, image.shape) * rng.uniform(1, 4)


def _noise(rng: Rng, shape: tuple[int, ...]) -> Image:
    return rng.standard_normal(shape, dtype=np.float32)


def _visible(cell: Cell, later: list[Cell]) -> float:
    """Return the share of `cell` that no later cell covers; red cells are translucent and cover half."""
    area = float(cell.alpha.sum())
    if area == 0:
        return 0.0
    left = cell.alpha.copy()
    for other in later:
        left *= 1.0 - other.alpha * (0.5 if other.label == RED else 1.0)
    return float(left.sum()) / area
