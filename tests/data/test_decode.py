"""Every kind of image becomes upright 8-bit pixels, and every damaged one a sentence."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from unmask.data.decode import MAX_PIXELS, DecodeError, PixelMemory, decode, open_image, read_size


def gradient(height: int = 24, width: int = 40) -> NDArray[np.uint8]:
    """A smooth RGB image without symmetries, so that a wrong turn or a swapped channel shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 2], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes, channels: int = 3) -> NDArray[np.int64]:
    return decode(data, min_size=None, channels=channels).pixels_HWC.astype(np.int64)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_keep_every_pixel(kind: str, options: dict[str, object]) -> None:
    assert (pixels(encoded(Image.fromarray(gradient()), kind, **options)) == gradient()).all()


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 6), ("WEBP", 12)])
def test_lossy_formats_stay_close(kind: str, tolerance: int) -> None:
    difference = pixels(encoded(Image.fromarray(gradient()), kind, quality=95)) - gradient()
    assert np.abs(difference).mean() < tolerance


def test_grey_files_give_three_equal_channels_or_one() -> None:
    grey = gradient()[:, :, 1]
    data = encoded(Image.fromarray(grey), "PNG")
    assert (pixels(data) == grey[:, :, None]).all()
    assert (pixels(data, channels=1) == grey[:, :, None]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_colour_becomes_grey_by_luminance(kind: str) -> None:
    expected = np.asarray(Image.fromarray(gradient()).convert("L")).astype(np.int64)
    found = pixels(encoded(Image.fromarray(gradient()), kind, **({"quality": 98} if kind == "JPEG" else {})), 1)
    assert found.shape == (*expected.shape, 1)
    assert np.abs(found[:, :, 0] - expected).max() <= (6 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    alpha = np.zeros(gradient().shape[:2], dtype=np.uint8)
    alpha[:, 20:] = 255
    image.putalpha(Image.fromarray(alpha))
    found = pixels(encoded(image, "PNG"))
    assert (found[:, :20] == 255).all()
    assert (found[:, 20:] == np.asarray(image.convert("RGB"))[:, 20:]).all()


def test_half_transparent_black_is_middle_grey() -> None:
    found = pixels(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "WEBP", lossless=True))
    assert np.abs(found - 127).max() <= 1


def test_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (4, 0, 8, 8))
    found = pixels(encoded(image, "PNG", transparency=0))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == (200, 100, 50)).all()


def test_rgb_with_a_transparent_colour() -> None:
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    image.putpixel((0, 0), (9, 9, 9))
    found = pixels(encoded(image, "PNG", transparency=(1, 2, 3)))
    assert (found[0, 0] == 9).all()
    assert (found[1:] == 255).all()


def test_one_bit_images() -> None:
    image = Image.new("1", (6, 6), 0)
    image.paste(1, (3, 0, 6, 6))
    found = pixels(encoded(image, "PNG"))
    assert set(np.unique(found)) == {0, 255}
    assert (found[:, 3:] == 255).all()


def test_cmyk_jpeg_has_the_right_colours() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(encoded(image, "JPEG", quality=95)) - (255, 0, 0)).max() <= 10


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    levels = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    found = pixels(encoded(Image.fromarray(levels), kind), channels=1)
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (
            np.full((4, 4), 1.5, dtype=np.float32),
            "its pixels are floating-point numbers from 1.5 to 1.5, and nothing says which of them are black and white",
        ),
        (
            np.full((4, 4), 1 << 20, dtype=np.int32),
            "its pixels are whole numbers of 32 bits from 1.04858e[+]06 to 1.04858e[+]06, and nothing says",
        ),
    ],
)
def test_other_depths_are_refused(array: NDArray[np.generic], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        pixels(encoded(Image.fromarray(array), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    upright = gradient()
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation]))
    data = encoded(stored, kind, exif=exif, **({"quality": 98} if kind in ("JPEG", "WEBP") else {}))
    opened = open_image(data)
    assert (opened.height, opened.width) == read_size(data) == upright.shape[:2]
    found = opened.decode(min_size=None, channels=3).pixels_HWC
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 12


def test_a_jpeg_is_decoded_at_the_smallest_sufficient_scale() -> None:
    data = encoded(Image.fromarray(gradient(203, 301)), "JPEG", quality=95)
    sizes = {}
    for needed in (203, 102, 101, 50, 25, 1):
        decoded = decode(data, min_size=(needed, 1), channels=3)
        assert decoded.pixels_HWC.shape[0] >= needed
        assert (decoded.height, decoded.width) == (203, 301)
        sizes[needed] = decoded.reduction
    assert sizes == {203: 1, 102: 1, 101: 2, 50: 4, 25: 8, 1: 8}


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (17, 15), (8, 64)])
def test_reduction_is_exact_for_odd_sizes(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size), "JPEG")
    for needed in (1, 2, 3):
        decoded = decode(data, min_size=(needed, needed), channels=3)
        height, width = -(-size[1] // decoded.reduction), -(-size[0] // decoded.reduction)
        assert decoded.pixels_HWC.shape[:2] == (height, width)


def test_a_reduced_jpeg_resizes_like_the_full_one() -> None:
    data = encoded(Image.fromarray(gradient(240, 320)), "JPEG", quality=95)
    box = (40, 60, 160, 200)
    full = decode(data, min_size=None, channels=3).resized(box, 40, 50).int()
    reduced = decode(data, min_size=(60, 80), channels=3)
    assert reduced.reduction == 4
    assert (reduced.resized(box, 40, 50).int() - full).abs().float().mean() < 2


def test_resizing_matches_pillow() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    top, left, height, width = 5, 9, 40, 52
    found = decode(encoded(image, "PNG"), min_size=None, channels=3).resized((top, left, height, width), 32, 24)
    cut = image.crop((left, top, left + width, top + height))
    expected = np.asarray(cut.resize((24, 32), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.1


def photo(height: int = 203, width: int = 301) -> Image.Image:
    """Noise over smooth colours: every coefficient of a JPEG's blocks is used."""
    noise = np.random.default_rng(1).integers(0, 60, (height, width, 3))
    return Image.fromarray((gradient(height, width) * 0.7 + noise).clip(0, 255).astype(np.uint8))


JPEGS = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 7},
    "kept as RGB": {"keep_rgb": True},
    "comment": {"comment": b"c" * 3000},
}


def by_pillow(data: bytes, *, reduction: int = 1, channels: int = 3) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data))
    mode = "RGB" if channels == 3 else "L"
    image.draft(mode, (image.width // reduction, image.height // reduction))
    return np.asarray(image.convert(mode)).reshape(image.height, image.width, channels)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_have_pillows_pixels_to_the_last_bit(kind: str, reduction: int, channels: int) -> None:
    data = encoded(photo(290, 420), "JPEG", quality=91, **JPEGS[kind])
    decoded = decode(data, min_size=(290 // reduction, 1), channels=channels)
    assert decoded.reduction == reduction
    assert np.array_equal(decoded.pixels_HWC, by_pillow(data, reduction=reduction, channels=channels))


def test_grey_jpegs_serve_either_number_of_channels() -> None:
    data = encoded(photo().convert("L"), "JPEG")
    for channels in (1, 3):
        assert np.array_equal(pixels(data, channels=channels), by_pillow(data, channels=channels))


@pytest.mark.parametrize("kind", JPEGS)
@given(last_row=st.integers(1, 290), reduction=st.sampled_from([1, 2, 4]), channels=st.sampled_from([1, 3]))
@settings(max_examples=20, deadline=None)
def test_rows_needed_are_the_same_when_the_rest_is_left_out(
    kind: str, last_row: int, reduction: int, channels: int
) -> None:
    opened = open_image(encoded(photo(290, 200), "JPEG", quality=91, **JPEGS[kind]))
    least = (290 // reduction, 1)
    full = opened.decode(min_size=least, channels=channels).pixels_HWC
    part = opened.decode(min_size=least, channels=channels, last_row=last_row).pixels_HWC
    needed = -(-last_row // reduction)
    assert needed <= part.shape[0] <= full.shape[0]
    assert np.array_equal(part[:needed], full[:needed])


def test_rows_that_nobody_needs_are_not_decoded() -> None:
    opened = open_image(encoded(photo(400, 200), "JPEG"))
    assert opened.decode(min_size=None, channels=3, last_row=150).pixels_HWC.shape == (160, 200, 3)


def test_rows_left_out_do_not_hide_that_a_file_is_truncated() -> None:
    data = encoded(photo(400, 200), "JPEG")
    opened = open_image(data[:-300])
    with pytest.raises(DecodeError, match="it cannot be decoded"):
        opened.decode(min_size=None, channels=3, last_row=100)


def test_pixels_lie_in_memory_that_is_lent_again() -> None:
    data, memory = encoded(photo(), "JPEG"), PixelMemory()
    opened = open_image(data)
    with memory.lent(opened.bytes_needed(3)) as first:
        inside = opened.decode(min_size=None, channels=3, memory=first).pixels_HWC
        assert np.shares_memory(inside, first)
        assert np.array_equal(inside, by_pillow(data))
        with memory.lent(10) as meanwhile:
            assert not np.shares_memory(first, meanwhile)
    with memory.lent(10) as again:
        assert len(again) >= 10
    small = np.empty(100, np.uint8)
    assert not np.shares_memory(opened.decode(min_size=None, channels=3, memory=small).pixels_HWC, small)


def test_memory_of_huge_images_is_given_back() -> None:
    memory = PixelMemory()
    with memory.lent(1 << 26) as huge:
        assert len(huge) == 1 << 26
    with memory.lent(1) as next_one:
        assert len(next_one) == 1


def test_memory_is_sent_to_other_processes_empty() -> None:
    memory = PixelMemory()
    with memory.lent(1 << 20):
        pass
    assert len(pickle.dumps(memory)) < 200


@pytest.mark.parametrize("present", [1, 3])
@pytest.mark.parametrize("wanted", [1, 3])
def test_grey_and_rgb_arrays_serve_either(present: int, wanted: int) -> None:
    found = decode(gradient()[:, :, :present], min_size=None, channels=wanted)
    assert found.pixels_HWC.shape == (24, 40, wanted)


def test_arrays_of_many_channels_pass_as_they_are() -> None:
    array = np.concatenate([gradient(), gradient()[:, :, :2]], axis=2)
    decoded = decode(array, min_size=None, channels=5)
    assert (decoded.pixels_HWC == array).all()
    assert decoded.resized((0, 0, 24, 40), 8, 8).shape == (5, 8, 8)
    with pytest.raises(DecodeError, match="it has 5 channels, and 3 are wanted"):
        decode(array, min_size=None, channels=3)


def test_read_only_arrays_are_left_alone() -> None:
    array = gradient()
    array.flags.writeable = False
    decode(array, min_size=None, channels=3).resized((0, 0, 24, 40), 8, 8)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3), complex), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)])
def test_odd_arrays_are_refused(array: NDArray[np.uint8]) -> None:
    with pytest.raises(DecodeError, match=r"an array must hold numbers in the shape \[H, W, C\] or \[H, W\], not "):
        decode(array, min_size=None, channels=3)


def test_an_image_file_has_no_four_channels() -> None:
    with pytest.raises(DecodeError, match="it has 3 channels, and 4 are wanted"):
        pixels(encoded(Image.fromarray(gradient()), "PNG"), channels=4)


def test_alpha_is_a_fourth_channel_for_those_who_ask() -> None:
    image = Image.fromarray(np.dstack([gradient(), gradient()[:, :, 1]]))
    assert (pixels(encoded(image, "PNG"), channels=4) == np.asarray(image)).all()
    assert open_image(encoded(image, "PNG")).channels == 3


@pytest.mark.parametrize(
    ("data", "channels", "kind"),
    [
        (encoded(Image.fromarray(gradient()), "JPEG"), 3, "uint8"),
        (encoded(Image.fromarray(gradient()[:, :, 0]), "JPEG"), 1, "uint8"),
        (encoded(Image.fromarray(gradient()).convert("P"), "PNG"), 3, "uint8"),
        (encoded(Image.fromarray(gradient()).convert("CMYK"), "JPEG"), 3, "uint8"),
        (encoded(Image.fromarray(gradient()).convert("LA"), "PNG"), 1, "uint8"),
        (encoded(Image.fromarray(gradient()[:, :, 0].astype(np.uint16)), "PNG"), 1, "uint16"),
        (encoded(Image.fromarray(gradient()[:, :, 0].astype(np.float32)), "TIFF"), 1, "float32"),
    ],
)
def test_an_open_image_tells_its_channels_and_its_type(data: bytes, channels: int, kind: str) -> None:
    opened = open_image(data)
    assert (opened.channels, opened.dtype) == (channels, kind)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be large and holds next to nothing."""
    chunks = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(content)) + kind + content
        chunks += struct.pack(">I", zlib.crc32(kind + content))
    return chunks


@pytest.mark.parametrize("side", [8_001, 12_000, 20_000])
def test_huge_images_are_refused_by_their_header(side: int) -> None:
    with pytest.raises(DecodeError, match=f"more than the .*{MAX_PIXELS}"):
        open_image(png_header(side, side))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_refused(kind: str) -> None:
    data = encoded(Image.fromarray(gradient(64, 64)), kind)
    with pytest.raises(DecodeError, match=r"it cannot be decoded|it is not an image"):
        pixels(data[: len(data) * 2 // 3])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image at all\n" * 9, "it is not an image of a known format"),
        (b"\xff\xd8\xff", "it is not an image of a known format"),
    ],
)
def test_other_files_are_refused(data: bytes, reason: str) -> None:
    for action in (pixels, read_size):
        with pytest.raises(DecodeError, match=reason):
            action(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_flipped_bytes_give_pixels_or_a_sentence(kind: str) -> None:
    data = encoded(Image.fromarray(gradient()), kind)
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for position in generator.integers(0, min(len(data), 300), 3):
            damaged[position] = generator.integers(256)
        with contextlib.suppress(DecodeError):
            assert pixels(bytes(damaged)).shape[2] == 3


def test_files_are_decoded_without_warnings(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(DecodeError):
        open_image(png_header(10_000, 10_000))
    assert not recwarn.list
