"""Damaged images of every kind are pixels or a DecodeError, and what is too large is refused by its header."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import strategies as st
from PIL import Image

from dicom_files import dicom
from fuzzing import answer, damaged, peak_mb, with_png_checksums
from unmask.data.decode import DecodeError, open_image, read_size
from unmask.data.segmentation import read_index_mask

Fuzz = Callable[..., None]
HEIGHT, WIDTH = 136, 150
"""Just enough for a JPEG to be decoded at a reduced scale."""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *, interlaced: bool = False) -> bytes:
    """A PNG of rows that are filtered already; for what Pillow cannot write."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def interlaced_rows(image_HWC: np.ndarray) -> bytes:
    """The rows of Adam7's seven passes, without filters."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b""
    for top, left, down, right in passes:
        for row in image_HWC[top::down, left::right]:
            rows += b"\0" + row.tobytes()
    return rows


@cache
def jpegs() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 10, 3), dtype=np.uint8))
    image = coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "baseline": encoded(image, "JPEG", quality=85),
        "4:4:4": encoded(image, "JPEG", subsampling="4:4:4", comment=b"words"),
        "grey": encoded(image.convert("L"), "JPEG"),
        "progressive": encoded(image, "JPEG", progressive=True),
        "restart markers": encoded(image, "JPEG", restart_marker_blocks=5),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "exif": encoded(image, "JPEG", exif=turned),
    }


@cache
def others() -> dict[str, bytes]:
    image = Image.open(io.BytesIO(jpegs()["baseline"])).resize((23, 17))
    sixteen = Image.fromarray(np.arange(23 * 17, dtype=np.uint16).reshape(17, 23) * 160)
    palette, one_bit = image.convert("P"), image.convert("1")
    turned = Image.Exif()
    turned[0x0112] = 8
    several = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    colours_HWC = np.asarray(image)
    return {
        "png": encoded(image, "PNG", exif=turned),
        "png with alpha": encoded(image.convert("RGBA"), "PNG"),
        "png of 16 bits": encoded(sixteen, "PNG"),
        "png of 16 bits and colours": png(3, 2, 16, 2, (b"\0" + bytes(range(18))) * 2),
        "png of a palette": encoded(palette, "PNG", transparency=3),
        "png of one bit": encoded(one_bit, "PNG"),
        "png interlaced": png(23, 17, 8, 2, interlaced_rows(colours_HWC), interlaced=True),
        "png animated": encoded(image, "PNG", **several),
        "webp": encoded(image, "WEBP"),
        "webp lossless": encoded(image.convert("RGBA"), "WEBP", lossless=True, exif=turned),
        "webp animated": encoded(image, "WEBP", **several),
        "gif": encoded(palette, "GIF", transparency=3),
        "gif animated": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "bmp": encoded(image, "BMP"),
        "bmp of a palette": encoded(palette, "BMP"),
        "bmp of one bit": encoded(one_bit, "BMP"),
    }


@cache
def tiffs() -> dict[str, bytes]:
    image = Image.open(io.BytesIO(others()["png"]))
    sixteen, one_bit = Image.open(io.BytesIO(others()["png of 16 bits"])), image.convert("1")
    turned = Image.Exif()
    turned[0x0112] = 5
    return {
        "tiff": encoded(image, "TIFF", exif=turned),
        "tiff of 16 bits": encoded(sixteen, "TIFF"),
        "tiff of numbers": encoded(Image.fromarray(np.ones((4, 5), np.float32)), "TIFF"),
        "tiff lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encoded(image, "TIFF", compression="tiff_deflate"),
        "tiff jpeg": encoded(image, "TIFF", compression="jpeg"),
        "tiff of one bit": encoded(one_bit, "TIFF", compression="group4"),
        "tiff of pages": encoded(image, "TIFF", save_all=True, append_images=[image]),
    }


def tiff_of(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


@cache
def wide() -> dict[str, bytes]:
    """What neither Pillow nor simplejpeg reads: wide numbers, many channels."""
    values = np.random.default_rng(0).integers(0, 4000, (13, 32, 40)).astype(np.uint16)
    reals = (values[0] / 4000).astype(np.float32)
    bands: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "separate"}
    found = {
        "bands": tiff_of(values, **bands),
        "bands side by side": tiff_of(values.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig"),
        "lzw": tiff_of(values[:5], compression="lzw", predictor=2, **bands),
        "deflate": tiff_of(values[:3], compression="zlib", predictor=2, photometric="rgb", planarconfig="separate"),
        "zstandard tiles": tiff_of(reals, compression="zstd", predictor=3, tile=(16, 16)),
        "jpeg tiles": tiff_of((values[:4] >> 4).astype(np.uint8), compression="jpeg", tile=(16, 16), **bands),
        "packbits": tiff_of((values[:4] >> 4).astype(np.uint8), compression="packbits", **bands),
        "ome": tiff_of(values[:5], ome=True, metadata={"axes": "CYX"}),
        "imagej": tiff_of(values[:5], imagej=True, metadata={"axes": "CYX"}),
        "big": tiff_of(reals, bigtiff=True, extratags=[(42113, "s", 0, "-9999", True)]),
        "png of 16 bits": imagecodecs.png_encode(np.ascontiguousarray(values[:3].transpose(1, 2, 0))),
        "png of 16 bits and alpha": imagecodecs.png_encode(np.ascontiguousarray(values[:4].transpose(1, 2, 0))),
    }
    for name, array in (("npy", values[:5]), ("npy of reals", reals)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        found[name] = buffer.getvalue()
    return found


@cache
def scans() -> dict[str, bytes]:
    values = np.random.default_rng(0).integers(0, 2000, (24, 20)).astype(np.uint16)
    colours = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    return {
        "scan": dicom(values, RescaleSlope=2, RescaleIntercept=-1024),
        "packed": dicom(values, packed=True),
        "turned round": dicom(values, "MONOCHROME1"),
        "colours": dicom(colours, "RGB"),
    }


def look_at(data: bytes, channels: int, least: tuple[int, int] | None, last_row: int | None) -> None:
    """Whatever the data path does with an image file."""
    size = []

    def both_sizes() -> None:
        size.append(read_size(data))

    def pixels() -> None:
        opened = open_image(data)
        assert opened.height * opened.width > 0
        memory = np.empty(min(opened.bytes_needed(channels), 1 << 26), np.uint8)
        found = opened.decode(min_size=least, channels=channels, last_row=last_row, memory=memory)
        assert found.pixels_HWC.dtype == np.uint8
        assert found.pixels_HWC.shape[2] == channels
        box = (0, 0, min(found.height, 8), min(found.width, 8))
        assert found.resized(box, 4, 4).shape == (channels, 4, 4)

    answer(both_sizes, DecodeError)
    answer(pixels, DecodeError)
    answer(lambda: read_index_mask(data), DecodeError, OSError)


WAYS = st.tuples(
    st.sampled_from((1, 3)), st.sampled_from((None, (1, 1), (30, 30), (HEIGHT // 2, 1))), st.sampled_from((None, 1, 40))
)


def test_jpegs(fuzz: Fuzz) -> None:
    fuzz(st.tuples(damaged(jpegs()), WAYS), lambda drawn: look_at(drawn[0], *drawn[1]), examples=80)


def test_other_images(fuzz: Fuzz) -> None:
    files = st.one_of(damaged(others()), damaged({**others(), **jpegs()}).map(with_png_checksums))
    fuzz(st.tuples(files, WAYS), lambda drawn: look_at(drawn[0], *drawn[1]), examples=100)


def test_tiffs(fuzz: Fuzz) -> None:
    # libtiff complains of what it does not like on stderr, past Pillow and us.
    fuzz(st.tuples(damaged(tiffs()), WAYS), lambda drawn: look_at(drawn[0], *drawn[1]), examples=50, quiet=False)


def test_wide_images(fuzz: Fuzz) -> None:
    files = st.one_of(damaged(wide()), damaged(wide()).map(with_png_checksums))
    ways = st.one_of(WAYS, st.tuples(st.just(5), st.none(), st.none()))
    # What is damaged in its first tags is Pillow's, whose libtiff complains on stderr.
    fuzz(st.tuples(files, ways), lambda drawn: look_at(drawn[0], *drawn[1]), examples=60, quiet=False)


def test_scans(fuzz: Fuzz) -> None:
    fuzz(st.tuples(damaged(scans()), WAYS), lambda drawn: look_at(drawn[0], *drawn[1]), examples=15)


def jpeg_header(frame: bytes, side: int) -> bytes:
    """Of a JPEG only what says its size, with an end."""
    head = b"\xff\xd8" + frame + struct.pack(">HBHHB", 17, 8, side, side, 3) + bytes([1, 34, 0, 2, 17, 0, 3, 17, 0])
    return head + b"\xff\xd9"


def tiff_header(side: int, *, bits: int = 8, channels: int = 1) -> bytes:
    entries = [(256, side), (257, side), (258, bits), (259, 1), (262, 1), (273, 8)]
    entries += [(277, channels), (278, side), (279, 9)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0)


SIDE = 60_000
BOMBS = {
    "png": png(SIDE, SIDE, 8, 2, b""),
    "jpeg": jpeg_header(b"\xff\xc0", SIDE),
    "progressive jpeg": jpeg_header(b"\xff\xc2", SIDE),
    # A WebP has 14 bits for its sides, 24 for those of its canvas.
    "webp": b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8 " + struct.pack("<I", 18) + b"\x10\0\0\x9d\x01\x2a"
    b"\xff\x3f\xff\x3f" + bytes(8),
    "webp of a canvas": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0"
    + struct.pack("<I", SIDE - 1)[:3] * 2,
    "tiff": tiff_header(SIDE),
    "tiff of 16 bits": tiff_header(SIDE, bits=16),
    "tiff of 1000 channels": tiff_header(6000, channels=1000),
    "png of 16 bits": png(SIDE, SIDE, 16, 2, b""),
    "npy": b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (60000, 60000, 3), }".ljust(117) + b"\n",
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 60, 0, 54, 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(6),
    "gif": b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0, 0, 0) + b",\0\0\0\0"
    + struct.pack("<HHB", SIDE, SIDE, 0) + b"\x02\x02\x44\x01\0;",
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(kind: str, recwarn: pytest.WarningsRecorder) -> None:
    before = peak_mb()
    for read in (read_size, open_image):
        with pytest.raises(
            DecodeError, match=r"pixels( allowed|, more than the| of)|it cannot be decoded|it is no array"
        ):
            read(BOMBS[kind])
    assert peak_mb() - before < 64
    assert not recwarn.list
