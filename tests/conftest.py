"""What tests of several rooms share: a folder of a few small, varied images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Twelve smooth colour images of two classes, six JPEG and six PNG, from 40 to 95 pixels a side."""
    folder = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for number in range(12):
        name = folder / ("warm" if number % 2 else "cold") / f"{number:02d}.{'png' if number % 4 < 2 else 'jpg'}"
        name.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        coarse[:, :, 0 if number % 2 else 2] //= 4
        size = (40 + 5 * number, 95 - 5 * number)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(name, quality=90)
    return folder
