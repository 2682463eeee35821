"""From the bytes of an image file to 8-bit pixels, whatever the kind of image.

Decoding is in two steps, because the crop decides how much must be decoded: `open_image` reads the header and
tells the size, `decode` then makes the pixels, of a JPEG at a reduced scale when the crops need no more, and only
down to the last row that they need. Usual JPEGs (8 bits, grey or YCbCr) are decoded by simplejpeg, which is
libjpeg-turbo writing straight into our memory; all else is Pillow's, which is libjpeg-turbo with three more copies:
the pixels are the same to the last bit. What neither of them gives whole (wide numbers, many channels, DICOM, NumPy's
files) is read by the modules beside this one, and becomes 8 bits by `StoredPixels.eight_bit`.
Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import io
import struct
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
from PIL import ExifTags, Image, JpegImagePlugin
from torch import Tensor

from unmask.data.decode_errors import MAX_PIXELS as MAX_PIXELS
from unmask.data.decode_errors import DecodeError as DecodeError
from unmask.data.decode_errors import check_size, decode_errors
from unmask.data.deep_png import is_deep_png, read_deep_png
from unmask.data.dicom import is_dicom, read_dicom
from unmask.data.numpy_files import is_npy, read_npy
from unmask.data.stored import PixelRange, StoredPixels, as_stored
from unmask.data.stored import upright as upright_array
from unmask.data.tiff import is_tiff, is_unusual, read_tiff

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_GREY = ("1", "L", "LA", "La")
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

    `content` is a usual JPEG file as it is, anything else of 8 bits as Pillow has opened it, or pixels as stored.
    """

    content: bytes | Image.Image | StoredPixels
    height: int
    width: int
    orientation: int = 1
    frame: int = 0
    """Where a usual JPEG says its height, in two bytes."""
    pixel_range: PixelRange | None = None
    """What becomes black and white of more than 8 bits; None: the ends of the type."""

    @property
    def image(self) -> Image.Image | StoredPixels:
        """The image as Pillow opens it, or pixels as stored. Raises DecodeError."""
        if not isinstance(self.content, bytes):
            return self.content
        with decode_errors():
            return _open(self.content)

    @property
    def channels(self) -> int:
        """How many channels the image has: 1 for grey, 3 for all that becomes red, green and blue, or more."""
        if isinstance(self.content, bytes):
            # Behind height and width of a JPEG's frame.
            return self.content[self.frame + 4]
        if isinstance(self.content, StoredPixels):
            return int(self.content.values_HWC.shape[2])
        return 1 if self.content.mode in _GREY else 3

    @property
    def dtype(self) -> str:
        """NumPy's name for the type of the stored values: uint8, uint16, float32 ..."""
        return self.content.values_HWC.dtype.name if isinstance(self.content, StoredPixels) else "uint8"

    def decode(
        self,
        *,
        min_size: tuple[int, int] | None,
        channels: int,
        last_row: int | None = None,
        memory: UInt8[np.ndarray, " N"] | None = None,
    ) -> Decoded:
        """The pixels, at the smallest scale that leaves the whole image at least `min_size` (height, width).

        None means full scale. `channels` must be the image's own number, or 1 and 3 for each other; of colours with
        one channel more it may be 3 or 4. Rows of the original from `last_row` on may be missing from the result,
        and `memory`, where it is large enough (`bytes_needed`), may hold the pixels. Raises DecodeError.
        """
        if isinstance(self.content, StoredPixels):
            present = self.channels
            fitting = (present, 1, 3) if self.content.colours or present in (1, 3) else (present,)
            if channels not in fitting:
                raise DecodeError(_wrong_channels(present, channels))
            pixels_HWC = _with_channels(self.content.eight_bit(self.pixel_range), channels, self.content.colours)
            return Decoded(pixels_HWC, self.height, self.width)
        if channels not in (1, 3):
            return Decoded(self._four_channels(self.content, channels), self.height, self.width)
        reduction = _reduction(self.height, self.width, min_size)
        # In tiny images several scales give the same size, and simplejpeg would take another than Pillow.
        if isinstance(self.content, bytes) and (reduction == 1 or min(self.height, self.width) >= _FEW_ROWS):
            pixels_HWC = self._decode_usual_jpeg(self.content, reduction, channels, last_row, memory)
            return Decoded(pixels_HWC, self.height, self.width, reduction)
        image = self.image
        assert isinstance(image, Image.Image)
        with decode_errors():
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

    def _four_channels(self, image: bytes | Image.Image, channels: int) -> UInt8[np.ndarray, "H W 4"]:
        """Red, green, blue and what an image file has beside them, for those who ask for just that."""
        if channels != 4 or isinstance(image, bytes) or image.mode not in ("RGBA", "RGBX"):
            raise DecodeError(_wrong_channels(self.channels, channels))
        with decode_errors():
            return np.array(_upright(image, self.orientation))

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


def open_image(data: bytes | NDArray[Any], pixel_range: PixelRange | None = None) -> OpenImage:
    """Read an image's header, or check an array of shape [H, W, C] or [H, W]; only a JPEG is decoded later.

    `pixel_range` is for images of more than 8 bits. Raises DecodeError.
    """
    if not isinstance(data, bytes):
        return _stored(StoredPixels(as_stored(data)), pixel_range)
    frame = _usual_jpeg(data)
    if frame is not None:
        height, width = struct.unpack_from(">HH", data, frame)
        check_size(height, width)
        return OpenImage(data, height, width, frame=frame)
    stored = _read_stored(data)
    if stored is not None:
        return _stored(stored, pixel_range)
    with decode_errors():
        image = _open(data)
        if not isinstance(image, JpegImagePlugin.JpegImageFile):
            image.load()  # other formats may tell their orientation only behind the pixels
        orientation = _orientation(image)
        if image.mode.startswith(("I", "F")):
            pixels = upright_array(np.asarray(image), orientation)
            return _stored(StoredPixels(as_stored(pixels)), pixel_range)
    height, width = (image.width, image.height) if orientation >= 5 else (image.height, image.width)
    return OpenImage(image, height, width, orientation)


def _read_stored(data: bytes) -> StoredPixels | None:
    """The pixels of a file that neither simplejpeg nor Pillow gives whole; None for all others."""
    if is_deep_png(data):
        return read_deep_png(data)
    if is_tiff(data):
        return read_tiff(data) if is_unusual(data) else None
    if is_npy(data):
        return read_npy(data)
    return read_dicom(data) if is_dicom(data) else None


def _stored(stored: StoredPixels, pixel_range: PixelRange | None) -> OpenImage:
    height, width, _ = stored.values_HWC.shape
    return OpenImage(stored, height, width, pixel_range=pixel_range)


def decode(data: bytes | NDArray[Any], *, min_size: tuple[int, int] | None, channels: int) -> Decoded:
    """The pixels of an image: upright, 8 bits, without alpha (laid on white); see `OpenImage.decode`."""
    return open_image(data).decode(min_size=min_size, channels=channels)


def read_size(data: bytes | NDArray[Any]) -> tuple[int, int]:
    """Height and width of the upright image, from the header alone. Raises DecodeError."""
    if not isinstance(data, bytes) or _usual_jpeg(data) is not None or not _is_pillows(data):
        opened = open_image(data)
        return opened.height, opened.width
    with decode_errors():
        image = _open(data)
        turned = "exif" in image.info and _orientation(image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def _is_pillows(data: bytes) -> bool:
    return not (is_npy(data) or is_dicom(data) or (is_tiff(data) and is_unusual(data)))


def _open(data: bytes) -> Image.Image:
    if not data:
        raise DecodeError("the file is empty")
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    check_size(image.height, image.width)
    return image


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
    """The image as mode L or RGB, anything transparent laid on white."""
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGB", image.size, "white")
        background.paste(image, mask=image.getchannel("A"))
        image = background
    return image if image.mode == mode else image.convert(mode)


def _with_channels(image_HWC: NDArray[np.uint8], channels: int, colours: bool) -> NDArray[np.uint8]:
    """The array with this number of channels: as it is, or grey and RGB made of each other.

    `colours`: it begins with red, green and blue, and what follows may be left out.
    """
    if colours and channels in (1, 3):
        image_HWC = image_HWC[:, :, :3]
    present = image_HWC.shape[2]
    if present == 1 and channels == 3:
        return np.repeat(image_HWC, 3, axis=2)
    if present == 3 and channels == 1:
        return np.array(Image.fromarray(np.ascontiguousarray(image_HWC)).convert("L"))[:, :, None]
    # Copied where a source's array is read-only, because torch shares memory only with writable ones.
    return image_HWC if image_HWC.flags.writeable else image_HWC.copy()


def _wrong_channels(present: int, wanted: int) -> str:
    return f"it has {present} channel{'s' if present > 1 else ''}, and {wanted} are wanted"
