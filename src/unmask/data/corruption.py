"""The fifteen common corruptions of Hendrycks and Dietterich (2019, arXiv 1903.12261), applied to evaluation crops.

The library `imagecorruptions` makes them, with the authors' constants of severity. Those were chosen for photos of 224
pixels, and kernels and shifts are in pixels: on small images they are much stronger than CIFAR-C's. So compare
classifiers at one image size. Its motion blur, frost pictures and glass blur are its own, and ImageNet-C was stored as
JPEG files: accuracies lie near those on ImageNet-C, but are not them.

Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from unmask.data.seeded import seeded
from unmask.extras import require

# fmt: off
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)
# fmt: on
SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIDE = 32
"""The library refuses smaller images, in pixels."""

_MASK_64 = (1 << 64) - 1
# These two draw from generators of their own, which only their argument seeds.
_SEEDED_BY_ARGUMENT = ("impulse_noise", "glass_blur")


@dataclass(frozen=True)
class Corruption:
    """One common corruption at one severity (1 to 5), for data workers: what it draws is a function of (`seed`, name,
    severity, the generator given).

    Images with a side below 32 pixels are enlarged until it has 32, corrupted, and reduced again. A grey image is
    corrupted as three equal channels, of which the second is kept: noise keeps its strength (a mean of the channels
    would weaken it), and what has no colour of its own gives equal channels anyway; frost loses its tint. Other
    numbers of channels raise ValueError, since snow, brightness or JPEG are not defined for them.
    """

    name: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_corruption(self.name, self.severity)

    def __call__(self, image_CHW: UInt8[Tensor, "C H W"], generator: np.random.Generator) -> UInt8[Tensor, "C H W"]:
        """The corrupted image. Raises ValueError for other than 1 or 3 channels or where the library is missing."""
        channels, height, width = image_CHW.shape
        if channels not in (1, 3):
            raise ValueError(f"the common corruptions are made for grey and colour images, not for {channels} channels")
        image_3HW = _enlarged(image_CHW).expand(3, -1, -1)
        seed = self._seed(generator)
        arguments = {"seed": seed} if self.name in _SEEDED_BY_ARGUMENT else {}
        image_HWC = image_3HW.permute(1, 2, 0).contiguous().numpy()
        corrupt = _library()
        with seeded(seed), _one_opencv_thread():
            corrupted_HWC = corrupt(image_HWC, severity=self.severity, corruption_name=self.name, **arguments)
        # Copied, because some come back read-only from Pillow.
        corrupted_3HW = torch.from_numpy(corrupted_HWC.copy()).permute(2, 0, 1)
        return _reduced(corrupted_3HW if channels == 3 else corrupted_3HW[1:2], height, width).contiguous()

    def _seed(self, generator: np.random.Generator) -> int:
        """32 bits, as many as NumPy's global generator is seeded by."""
        name, drawn = zlib.crc32(self.name.encode()), int(generator.integers(2**63))
        sequence = np.random.SeedSequence([self.seed & _MASK_64, name, self.severity, drawn])
        return int(sequence.generate_state(1)[0])


def check_corruption(name: str, severity: int) -> None:
    """Raise ValueError for a name that is none of the fifteen, or a severity that is not 1 to 5."""
    if name not in CORRUPTIONS:
        raise ValueError(f"{name} is none of the common corruptions: {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"a corruption has a severity from 1 to 5, not {severity}")


def rehearse(names: tuple[str, ...], *, channels: int, height: int, width: int) -> None:
    """Corrupt one black image by each of `names`, before workers are started.

    What cannot be done is so raised in one sentence and not in a worker, and the glass blur, whose compilation takes
    seconds, is compiled once for all workers that are forked from this process. Raises as `Corruption` does.
    """
    black_CHW = torch.zeros(channels, height, width, dtype=torch.uint8)
    for name in names:
        Corruption(name, 1)(black_CHW, np.random.default_rng(0))


@cache
def _library() -> Callable[..., NDArray[np.uint8]]:
    return require("robustness", "the common corruptions need").corrupt


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """OpenCV without its threads: a worker forked from a process that has started them would wait for them for ever."""
    opencv: Any = importlib.import_module("cv2")
    threads = opencv.getNumThreads()
    opencv.setNumThreads(0)
    try:
        yield
    finally:
        opencv.setNumThreads(threads)


def _enlarged(image_CHW: UInt8[Tensor, "C H W"]) -> UInt8[Tensor, "C _ _"]:
    """The image with at least 32 pixels on its shorter side."""
    height, width = image_CHW.shape[1:]
    scale = max(1.0, MIN_SIDE / min(height, width))
    return _reduced(image_CHW, round(height * scale), round(width * scale))


def _reduced(image_CHW: UInt8[Tensor, "C H W"], height: int, width: int) -> UInt8[Tensor, "C _ _"]:
    """The image resized as everywhere here (bicubic, antialiased), untouched where it has that size."""
    if image_CHW.shape[1:] == (height, width):
        return image_CHW
    return F.interpolate(image_CHW[None], size=(height, width), mode="bicubic", antialias=True)[0]
