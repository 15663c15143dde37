"""Augmentation of training samples: colour, zoom out, IoU crop, flips. Random numbers come from the caller alone.

The operations are those of RT-DETR's recipe (after SSD, arXiv 1512.02325, section 2.2), a little milder: colour is left
alone half of the time, channels are never exchanged, and the canvas of a zoom out has the image's mean colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.boxes import pairwise_iou
from rtdetr_train.data.coco import Sample

Rng = np.random.Generator


@dataclass(frozen=True)
class Augmentation:
    """Probability of each operation; `any_orientation` adds vertical flips and transposition.

    It suits pictures without up and down, e.g. from microscopes or aircraft.
    """

    color: float = 0.5
    zoom_out: float = 0.5
    crop: float = 0.8
    flip: float = 0.5
    any_orientation: bool = False
    max_zoom_out: float = 4.0

    def __call__(self, sample: Sample, rng: Rng) -> Sample:
        """Return an augmented copy of `sample`."""
        if rng.random() < self.color:
            sample = Sample(jitter_color(sample.image, rng), sample.boxes, sample.labels)
        if rng.random() < self.zoom_out:
            sample = zoom_out(sample, rng, self.max_zoom_out)
        if rng.random() < self.crop:
            sample = crop_by_iou(sample, rng)
        if rng.random() < self.flip:
            sample = flip_horizontally(sample)
        if self.any_orientation:
            if rng.random() < 0.5:
                sample = transpose(sample)
            if rng.random() < 0.5:
                sample = transpose(flip_horizontally(transpose(sample)))
        return sample.keep_usable()


def jitter_color(image: NDArray[np.uint8], rng: Rng) -> NDArray[np.uint8]:
    """Change brightness (x 0.875 .. 1.125), contrast and saturation (x 0.5 .. 1.5) and hue (+- 18 degrees).

    Brightness, contrast, and hue with saturation are each changed half the time.
    """
    pixels = image.astype(np.float32)
    if rng.random() < 0.5:
        pixels *= rng.uniform(0.875, 1.125)
    if rng.random() < 0.5:
        mean = pixels.mean()
        pixels = (pixels - mean) * rng.uniform(0.5, 1.5) + mean
    clipped = pixels.clip(0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(clipped, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = (hsv[..., 0] + rng.uniform(-9, 9)) % 180
        hsv[..., 1] *= rng.uniform(0.5, 1.5)
        clipped = cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.uint8)
    return clipped


def zoom_out(sample: Sample, rng: Rng, max_ratio: float) -> Sample:
    """Put the image somewhere on a canvas of its mean colour, up to `max_ratio` times as wide and high."""
    height, width = sample.image.shape[:2]
    ratio = rng.uniform(1.0, max_ratio)
    tall, wide = int(height * ratio), int(width * ratio)
    top, left = int(rng.uniform(0, tall - height + 1)), int(rng.uniform(0, wide - width + 1))
    canvas = np.empty((tall, wide, 3), np.uint8)
    canvas[:] = sample.image.mean(axis=(0, 1)).astype(np.uint8)
    canvas[top : top + height, left : left + width] = sample.image
    return Sample(canvas, sample.boxes + np.array([left, top, left, top], np.float32), sample.labels)


CROP_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
CROP_TRIALS = 40


def crop_by_iou(sample: Sample, rng: Rng) -> Sample:
    """Crop a window that overlaps some object enough; objects whose centre is outside are dropped.

    After `CROP_TRIALS` windows that don't, the sample is left as it is.
    """
    height, width = sample.image.shape[:2]
    overlap = float(rng.choice(CROP_OVERLAPS))
    for _ in range(CROP_TRIALS):
        w, h = int(width * rng.uniform(0.3, 1.0)), int(height * rng.uniform(0.3, 1.0))
        if not 0.5 <= w / max(h, 1) <= 2.0:
            continue
        left, top = int(rng.uniform(0, width - w + 1)), int(rng.uniform(0, height - h + 1))
        window = np.array([left, top, left + w, top + h], np.float32)
        centre = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
        inside = ((centre > window[:2]) & (centre < window[2:])).all(axis=1)
        if not inside.any() or pairwise_iou(sample.boxes[inside], window[None]).max() < overlap:
            continue
        boxes = sample.boxes[inside].copy()
        boxes[:, 0::2] = boxes[:, 0::2].clip(left, left + w) - left
        boxes[:, 1::2] = boxes[:, 1::2].clip(top, top + h) - top
        return Sample(np.ascontiguousarray(sample.image[top : top + h, left : left + w]), boxes, sample.labels[inside])
    return sample


def flip_horizontally(sample: Sample) -> Sample:
    """Mirror left and right."""
    width = sample.image.shape[1]
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = width - sample.boxes[:, [2, 0]]
    return Sample(np.ascontiguousarray(sample.image[:, ::-1]), boxes, sample.labels)


def transpose(sample: Sample) -> Sample:
    """Exchange rows and columns."""
    image = np.ascontiguousarray(sample.image.transpose(1, 0, 2))
    return Sample(image, sample.boxes[:, [1, 0, 3, 2]].copy(), sample.labels)
