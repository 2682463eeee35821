"""From the bytes of an image file to 8-bit pixels, whatever the kind of image.

Decoding is in two steps, because the crop decides how much must be decoded: `open_image` reads the header and
tells the size, `decode` then makes the pixels, of a JPEG at a reduced scale when the crops need no more.
Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 64_000_000
"""Larger images are refused by their header: a small file can hold an image that fills the memory."""

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to undo each EXIF orientation; from 5 on, height and width change places. [EXIF 2.32, tag 0x0112]"""


class DecodeError(ValueError):
    """An image that cannot be used; the message says why in a few words."""


@dataclass(frozen=True)
class Decoded:
    """The pixels of one image, possibly at a reduced scale.

    `height` and `width` are those of the original, upright image: boxes are in its pixels, `reduction` (1, 2,
    4 or 8) is how many of them a decoded pixel spans.
    """

    pixels_HWC: UInt8[np.ndarray, "H W C"]
    height: int
    width: int
    reduction: int = 1

    def resized(self, box: tuple[int, int, int, int], height: int, width: int) -> UInt8[Tensor, "C H W"]:
        """The region `box` (top, left, height, width in pixels of the original), cut out and then resized.

        Bicubic with antialiasing: Pillow's pixels (and so those of the authors' transforms) to a tenth of a
        level of 255 on average and four at most, in a quarter of its time. A box in a reduced image is
        rounded to whole decoded pixels.
        """
        top, left, bottom, right = (
            round(side / self.reduction) for side in (box[0], box[1], box[0] + box[2], box[1] + box[3])
        )
        region_HWC = self.pixels_HWC[top : max(bottom, top + 1), left : max(right, left + 1)]
        region_1CHW = torch.from_numpy(region_HWC).permute(2, 0, 1)[None]
        return F.interpolate(region_1CHW, size=(height, width), mode="bicubic", antialias=True)[0]


@dataclass(frozen=True)
class OpenImage:
    """An image whose size is known and whose pixels, for a JPEG, are still to be decoded."""

    image: Image.Image | NDArray[np.uint8]
    height: int
    width: int
    orientation: int = 1

    def decode(self, *, min_size: tuple[int, int] | None, channels: int) -> Decoded:
        """The pixels, at the smallest scale that leaves the whole image at least `min_size` (height, width).

        None means full scale. `channels` is 1 or 3 for image files; for arrays it must be the array's own
        number, or 1 and 3 for each other. Raises DecodeError.
        """
        if not isinstance(self.image, Image.Image):
            return Decoded(_with_channels(self.image, channels), self.height, self.width)
        if channels not in (1, 3):
            raise DecodeError(f"an image file gives 1 or 3 channels, not {channels}")
        mode = "L" if channels == 1 else "RGB"
        image = self.image
        reduction = 1
        with _decode_errors():
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                full_width = image.width
                wanted = _reduction(self.height, self.width, min_size)
                # Also lets the JPEG decoder skip the colours of an image that is wanted in grey.
                drafted = image.draft(mode, (image.width // wanted, image.height // wanted))
                if drafted is not None:
                    reduction = round(full_width / drafted[1][2])
            pixels = np.array(_upright(_eight_bit(image, mode), self.orientation))
        return Decoded(pixels[:, :, None] if channels == 1 else pixels, self.height, self.width, reduction)


def open_image(data: bytes | NDArray[Any]) -> OpenImage:
    """Read an image's header, or check an array of shape [H, W, C] or [H, W]; only a JPEG is decoded later.

    Raises DecodeError.
    """
    if not isinstance(data, bytes):
        if data.dtype != np.uint8 or data.ndim not in (2, 3) or not data.size:
            raise DecodeError(f"an array must be uint8 of shape [H, W, C], not {data.dtype} of {data.shape}")
        return OpenImage(data, data.shape[0], data.shape[1])
    with _decode_errors():
        image = _open(data)
        if not isinstance(image, JpegImagePlugin.JpegImageFile):
            image.load()  # other formats may tell their orientation only behind the pixels
        orientation = _orientation(image)
    height, width = (image.width, image.height) if orientation >= 5 else (image.height, image.width)
    return OpenImage(image, height, width, orientation)


def decode(data: bytes | NDArray[Any], *, min_size: tuple[int, int] | None, channels: int) -> Decoded:
    """The pixels of an image: upright, 8 bits, without alpha (laid on white); see `OpenImage.decode`."""
    return open_image(data).decode(min_size=min_size, channels=channels)


def read_size(data: bytes | NDArray[Any]) -> tuple[int, int]:
    """Height and width of the upright image, from the header alone. Raises DecodeError."""
    if not isinstance(data, bytes):
        return open_image(data).height, open_image(data).width
    with _decode_errors():
        image = _open(data)
        turned = "exif" in image.info and _orientation(image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def _decode_errors() -> Iterator[None]:
    """Make one error of all that a damaged file can provoke, and keep Pillow's warnings quiet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError(f"it has more than the {MAX_PIXELS} pixels allowed") from error
    except UnidentifiedImageError as error:
        raise DecodeError("it is not an image of a known format") from error
    # Pillow's readers raise nearly anything on damaged bytes: SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise DecodeError(f"it cannot be decoded: {error}") from error


def _open(data: bytes) -> Image.Image:
    if not data:
        raise DecodeError("the file is empty")
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError(f"it has {image.width} x {image.height} pixels, more than the {MAX_PIXELS} allowed")
    return image


def _orientation(image: Image.Image) -> int:
    # Only where there is EXIF data: asking for it can make Pillow read on.
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info else 1
    return orientation if orientation in _TURNS else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _reduction(height: int, width: int, min_size: tuple[int, int] | None) -> int:
    """How many pixels one pixel of the largest sufficient reduction spans: 1, 2, 4 or 8."""
    if min_size is None:
        return 1
    return max(r for r in (1, 2, 4, 8) if r == 1 or (height // r >= min_size[0] and width // r >= min_size[1]))


def _eight_bit(image: Image.Image, mode: str) -> Image.Image:
    """The image as mode L or RGB: 16 bits scaled to 8, anything transparent laid on white."""
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DecodeError("its pixels have 32 bits; save it with 8 or 16 bits")
        # 257 = 65535 / 255: white stays white.
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise DecodeError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGB", image.size, "white")
        background.paste(image, mask=image.getchannel("A"))
        image = background
    return image if image.mode == mode else image.convert(mode)


def _with_channels(image_HWC: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """The array with this number of channels: as it is, or grey and RGB made of each other."""
    if image_HWC.ndim == 2:
        image_HWC = image_HWC[:, :, None]
    present = image_HWC.shape[2]
    if present == 1 and channels == 3:
        return np.repeat(image_HWC, 3, axis=2)
    if present == 3 and channels == 1:
        return np.array(Image.fromarray(np.ascontiguousarray(image_HWC)).convert("L"))[:, :, None]
    if present != channels:
        raise DecodeError(f"the array has {present} channels where {channels} are wanted")
    # Copied where a source's array is read-only, because torch shares memory only with writable ones.
    return image_HWC if image_HWC.flags.writeable else image_HWC.copy()
