"""What the tests of rtdetr-detect share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path, picture: NDArray[np.uint8]) -> Path:
    """Three pictures, one of them in a folder of its own."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "sub/a.jpg"):
        Image.fromarray(picture).save(folder / name)
    return folder
