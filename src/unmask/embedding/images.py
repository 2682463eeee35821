"""Images that are given one by one, as a source: file names, Pillow's images, arrays."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unmask.data.source import Source


class GivenSource(Source):
    """Images as they were given: paths (str or Path), Pillow images, or arrays [H, W, C] or [H, W] of numbers."""

    def __init__(self, name: str, images: Iterable[Any]) -> None:
        """ValueError for anything else, and where there is none."""
        self.name = name
        self.labels = None
        self.classes = None
        self._images: list[str | Image.Image | NDArray[Any]] = []
        for number, image in enumerate(images):
            if isinstance(image, os.PathLike):
                self._images.append(os.fspath(image))
            elif isinstance(image, str | Image.Image) or (
                isinstance(image, np.ndarray) and image.dtype.kind in "uif" and image.ndim in (2, 3)
            ):
                self._images.append(image)
            else:
                kind = f"{image.dtype} of {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
                raise ValueError(
                    f"image {number} of {name} is neither a path, nor a Pillow image, nor an array of numbers of "
                    f"shape [H, W, C]: it is {kind}"
                )
        if not self._images:
            raise ValueError(f"there are no {name}")

    def __len__(self) -> int:
        return len(self._images)

    def path(self, index: int) -> str:
        image = self._images[index]
        if isinstance(image, str):
            return os.fsencode(image).decode("utf-8", "backslashreplace")
        return f"{self.name}/{index}"

    def read(self, index: int) -> bytes | NDArray[Any]:
        image = self._images[index]
        if isinstance(image, str):
            return Path(image).read_bytes()
        if isinstance(image, np.ndarray):
            return image
        # As the file that it could have come from: so it is turned upright, and laid on white, like any other.
        content = io.BytesIO()
        if image.mode == "F":
            return np.asarray(image)
        if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            image = image.convert("RGB")
        image.save(content, "PNG", exif=image.getexif())
        return content.getvalue()
