"""Synthetic pictures on which an exported file is compared with its model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.images.frame import ImageLike

SHAPES = 12
IMAGES = 4


def structured_image(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Return a colour gradient with rectangles and discs on it: uint8 `(height, width, 3)`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    weights = rng.uniform(-1.0, 1.0, (3, 2))
    image = np.stack([128 + 100 * (a * x / width + b * y / height) / 2 for a, b in weights], axis=-1)
    for index in range(SHAPES):
        centre_x, centre_y = rng.uniform(0, width), rng.uniform(0, height)
        radius_x, radius_y = rng.uniform(0.02, 0.2, 2) * (width, height)
        dx, dy = (x - centre_x) / radius_x, (y - centre_y) / radius_y
        inside = (np.maximum(abs(dx), abs(dy)) < 1) if index % 2 else (dx**2 + dy**2 < 1)
        image[inside] = rng.uniform(0, 255, 3)
    return image.clip(0, 255).astype(np.uint8)


def noisy_image(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Return a structured image under strong noise: uint8 `(height, width, 3)`."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0.0, 60.0, (height, width, 3))
    return (structured_image(height, width, seed) + noise).clip(0, 255).astype(np.uint8)


def synthetic_images(height: int, width: int) -> list[ImageLike]:
    """Return the synthetic pictures (BGR) that are compared where no others are given."""
    makers = (structured_image, noisy_image)
    return [np.ascontiguousarray(makers[seed % 2](height, width, seed)[..., ::-1]) for seed in range(IMAGES)]
