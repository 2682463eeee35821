"""From the bytes of an image file to 8-bit pixels, whatever the kind of image.

Decoding is in two steps, because the crop decides how much must be decoded: `open_image` reads the header and
tells the size, `decode` then makes the pixels, of a JPEG at a reduced scale when the crops need no more, and only
down to the last row that they need. Usual JPEGs (8 bits, grey or YCbCr) are decoded by simplejpeg, which is
libjpeg-turbo writing straight into our memory; all else is Pillow's, which is libjpeg-turbo with three more copies:
the pixels are the same to the last bit.
Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
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


_BLOCK = 16  # rows of pixels that a JPEG's usual unit spans
_FEW_ROWS = 8 * _BLOCK
_START_OF_JPEG = b"\xff\xd8"
_END_OF_JPEG = b"\xff\xd9"
_SEGMENTS = {bytes([code]) for code in (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))}
"""Markers of a JPEG's tables, comments and application data, which may come before its frame."""
_KEPT_BYTES = 1 << 25
"""Largest memory that is kept for the next image: one of 11 megapixels."""


class DecodeError(ValueError):
    """An image that cannot be used; the message says why in a few words."""


class PixelMemory:
    """Memory that one image after another is decoded into.

    Fresh memory for each image costs up to as much as decoding it: the system clears every page and maps it in. What
    is lent is used by one image at a time, in whichever thread; copies sent to other processes begin empty.
    """

    def __init__(self) -> None:
        self._free: list[UInt8[np.ndarray, " N"]] = []

    def __reduce__(self) -> tuple[type[PixelMemory], tuple[()]]:
        return PixelMemory, ()

    @contextmanager
    def lent(self, size: int) -> Iterator[UInt8[np.ndarray, " N"]]:
        """At least `size` bytes, until the context ends."""
        try:
            memory_N = self._free.pop()
        except IndexError:
            memory_N = np.empty(0, dtype=np.uint8)
        if len(memory_N) < size:
            memory_N = np.empty(size, dtype=np.uint8)
        yield memory_N
        if len(memory_N) <= _KEPT_BYTES and not self._free:
            self._free.append(memory_N)


@dataclass(frozen=True)
class Decoded:
    """The pixels of one image, possibly at a reduced scale, possibly without its last rows.

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
        # Torch resizes rows that lie one behind the other faster than a part of longer rows, copying included.
        region_1CHW = torch.from_numpy(region_HWC).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
        return F.interpolate(region_1CHW, size=(height, width), mode="bicubic", antialias=True)[0]


@dataclass(frozen=True)
class OpenImage:
    """An image whose size is known and whose pixels, for a JPEG, are still to be decoded.

    `content` is a usual JPEG file as it is, anything else as Pillow has opened it, or an array.
    """

    content: bytes | Image.Image | NDArray[np.uint8]
    height: int
    width: int
    orientation: int = 1
    frame: int = 0
    """Where a usual JPEG says its height, in two bytes."""

    @property
    def image(self) -> Image.Image | NDArray[np.uint8]:
        """The image as Pillow opens it, or the array. Raises DecodeError."""
        if not isinstance(self.content, bytes):
            return self.content
        with _decode_errors():
            return _open(self.content)

    def decode(
        self,
        *,
        min_size: tuple[int, int] | None,
        channels: int,
        last_row: int | None = None,
        memory: UInt8[np.ndarray, " N"] | None = None,
    ) -> Decoded:
        """The pixels, at the smallest scale that leaves the whole image at least `min_size` (height, width).

        None means full scale. `channels` is 1 or 3 for image files; for arrays it must be the array's own
        number, or 1 and 3 for each other. Rows of the original from `last_row` on may be missing from the result,
        and `memory`, where it is large enough (`bytes_needed`), may hold the pixels. Raises DecodeError.
        """
        if isinstance(self.content, np.ndarray):
            return Decoded(_with_channels(self.content, channels), self.height, self.width)
        if channels not in (1, 3):
            raise DecodeError(f"an image file gives 1 or 3 channels, not {channels}")
        reduction = _reduction(self.height, self.width, min_size)
        # In tiny images several scales give the same size, and simplejpeg would take another than Pillow.
        if isinstance(self.content, bytes) and (reduction == 1 or min(self.height, self.width) >= _FEW_ROWS):
            pixels_HWC = self._decode_usual_jpeg(self.content, reduction, channels, last_row, memory)
            return Decoded(pixels_HWC, self.height, self.width, reduction)
        image = self.image
        assert isinstance(image, Image.Image)
        with _decode_errors():
            mode = "L" if channels == 1 else "RGB"
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                full_width = image.width
                # Also lets the JPEG decoder skip the colours of an image that is wanted in grey.
                drafted = image.draft(mode, (image.width // reduction, image.height // reduction))
                reduction = 1 if drafted is None else round(full_width / drafted[1][2])
            else:
                reduction = 1
            pixels = np.array(_upright(_eight_bit(image, mode), self.orientation))
        return Decoded(pixels[:, :, None] if channels == 1 else pixels, self.height, self.width, reduction)

    def bytes_needed(self, channels: int) -> int:
        """Memory that the pixels of the image at full scale fill; 0 where `decode` can make no use of any."""
        return self.height * self.width * channels if isinstance(self.content, bytes) else 0

    def _decode_usual_jpeg(
        self,
        data: bytes,
        reduction: int,
        channels: int,
        last_row: int | None,
        memory: UInt8[np.ndarray, " N"] | None,
    ) -> UInt8[np.ndarray, "H W C"]:
        height = self.height
        encoded: bytes | bytearray = data
        if last_row is not None:
            # A file that claims to end earlier is decoded to there. The rows needed, two more because colours are
            # interpolated between rows, and whole blocks.
            height = min(height, max(-(-(last_row + 2 * reduction) // _BLOCK) * _BLOCK, _FEW_ROWS))
        if height < self.height:
            encoded = bytearray(data)
            encoded[self.frame : self.frame + 2] = height.to_bytes(2, "big")
        size = -(-height // reduction), -(-self.width // reduction)
        try:
            pixels_HWC: UInt8[np.ndarray, "H W C"] = simplejpeg.decode_jpeg(
                encoded,
                colorspace="GRAY" if channels == 1 else "RGB",
                min_height=size[0] if reduction > 1 else 0,
                min_width=size[1] if reduction > 1 else 0,
                buffer=memory if memory is not None and len(memory) >= height * self.width * channels else None,
                strict=False,  # the damage that it would refuse is what Pillow passes over, too
            )
        except ValueError as error:
            raise DecodeError(f"it cannot be decoded: {error}") from error
        assert pixels_HWC.shape == (*size, channels)
        return pixels_HWC


def open_image(data: bytes | NDArray[Any]) -> OpenImage:
    """Read an image's header, or check an array of shape [H, W, C] or [H, W]; only a JPEG is decoded later.

    Raises DecodeError.
    """
    if not isinstance(data, bytes):
        if data.dtype != np.uint8 or data.ndim not in (2, 3) or not data.size:
            raise DecodeError(f"an array must be uint8 of shape [H, W, C], not {data.dtype} of {data.shape}")
        return OpenImage(data, data.shape[0], data.shape[1])
    frame = _usual_jpeg(data)
    if frame is not None:
        height, width = struct.unpack_from(">HH", data, frame)
        _check_size(height, width)
        return OpenImage(data, height, width, frame=frame)
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
    if _usual_jpeg(data) is not None:
        opened = open_image(data)
        return opened.height, opened.width
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
    _check_size(image.height, image.width)
    return image


def _check_size(height: int, width: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(f"it has {width} x {height} pixels, more than the {MAX_PIXELS} allowed")


def _orientation(image: Image.Image) -> int:
    # Only where there is EXIF data: asking for it can make Pillow read on.
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info else 1
    return orientation if orientation in _TURNS else 1


def _usual_jpeg(data: bytes) -> int | None:
    """Where a JPEG of the usual kind says its height and width, in two bytes each; None for all else.

    Usual are files with one baseline frame of 8 bits in grey or three colours, that end as they should, are upright
    and hold nothing which could make them so: everything else is for Pillow to open and to judge.
    """
    # simplejpeg fills with grey what a truncated file lacks. Inside compressed pixels these bytes never stand.
    if data[:2] != _START_OF_JPEG or data.rfind(_END_OF_JPEG) < 0:
        return None
    position = 2
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1 : position + 2]
        if marker in (b"\xc0", b"\xc1"):
            usual = len(data) > position + 9 and data[position + 4] == 8 and data[position + 9] in (1, 3)
            return position + 5 if usual and data[position + 5 : position + 9].count(0) < 4 else None
        if marker not in _SEGMENTS or data[position + 4 : position + 8] == b"Exif":
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


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
