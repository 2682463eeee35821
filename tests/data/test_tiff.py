"""TIFFs of any depth, any number of channels and any layout become [H, W, C] as they were written."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from unmask.data.decode import DecodeError, open_image, read_size
from unmask.data.stored import StoredPixels


def written(array: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def numbers(*shape: int, kind: str) -> NDArray[Any]:
    values = np.random.default_rng(0).random(shape)
    return values.astype(kind) if kind.startswith("f") else (values * 200).astype(kind)


def stored(data: bytes) -> NDArray[Any]:
    content = open_image(data).content
    assert isinstance(content, StoredPixels)
    return content.values_HWC


BLACK: dict[str, Any] = {"photometric": "minisblack"}
LAST = {
    "tiles, Zstandard, predictor": ((48, 64), "f4", {"compression": "zstd", "predictor": 3, "tile": (16, 16)}),
    "half": ((24, 40), "f2", {}),
    "double": ((24, 40), "f8", {}),
    "signed": ((24, 40), "i2", {}),
    "32 bits": ((24, 40), "u4", {}),
    "big endian": ((24, 40), "u2", {"byteorder": ">"}),
    "BigTIFF": ((24, 40), "u2", {"bigtiff": True}),
    "colours": ((24, 40, 3), "u2", {"photometric": "rgb"}),
    "side by side": ((24, 40, 13), "u2", BLACK | {"planarconfig": "contig"}),
    "nobody said that these are channels": ((24, 40, 13), "u2", {}),
    "8 bits": ((24, 40, 6), "u1", BLACK | {"planarconfig": "contig"}),
    "red, green, blue, infrared": ((24, 40, 4), "u1", {"photometric": "rgb", "extrasamples": (0,)}),
}
FIRST = {
    "one after the other": ((13, 24, 40), "u2", BLACK | {"planarconfig": "separate"}),
    "LZW with a predictor": ((13, 24, 40), "u2", BLACK | {"planarconfig": "separate", "compression": "lzw",
                                                         "predictor": 2}),
    "pages": ((5, 24, 40), "u2", {"metadata": None}),
    "an array": ((5, 24, 40), "u2", {}),
    "OME": ((5, 24, 40), "u2", {"ome": True, "metadata": {"axes": "CYX"}}),
    "OME of 8 bits": ((5, 24, 40), "u1", {"ome": True, "metadata": {"axes": "CYX"}}),
    "ImageJ": ((5, 24, 40), "u2", {"imagej": True, "metadata": {"axes": "CYX"}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAST)
def test_channels_behind(kind: str) -> None:
    shape, dtype, options = LAST[kind]
    array = numbers(*shape, kind=dtype)
    data = written(array, **options)
    assert np.array_equal(stored(data), array if array.ndim == 3 else array[:, :, None])
    assert open_image(data).dtype == np.dtype(dtype).name
    assert read_size(data) == shape[:2]


@pytest.mark.parametrize("kind", FIRST)
def test_channels_in_front(kind: str) -> None:
    shape, dtype, options = FIRST[kind]
    array = numbers(*shape, kind=dtype)
    data = written(array, **options)
    assert np.array_equal(stored(data), array.transpose(1, 2, 0))
    assert open_image(data).channels == shape[0]
    assert read_size(data) == shape[1:]


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}])
@pytest.mark.parametrize(("axes", "what"), [("ZYX", "slices of a stack"), ("TCYX", "moments of a film")])
def test_stacks_and_films_are_refused(options: dict[str, Any], axes: str, what: str) -> None:
    array = numbers(*(range(3, 3 + len(axes) - 2)), 24, 40, kind="u2")
    with pytest.raises(DecodeError, match=f"it holds {what}.*: save each as an image of its own"):
        open_image(written(array, metadata={"axes": axes}, **options))


def test_usual_files_stay_with_pillow() -> None:
    for array in (numbers(24, 40, kind="u1"), numbers(24, 40, 3, kind="u1")):
        content = open_image(written(array)).content
        assert isinstance(content, Image.Image)
        assert np.array_equal(np.asarray(content), array)
    pages = [Image.fromarray(numbers(24, 40, kind="u1") + place) for place in range(2)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    assert open_image(buffer.getvalue()).channels == 1


def test_what_nobody_measured_is_black() -> None:
    array = np.array([[-9999, 0.25], [np.nan, 1.0]], dtype=np.float32)
    data = written(array, extratags=[(42113, "s", 0, "-9999", True)])
    found = open_image(data).decode(min_size=None, channels=1).pixels_HWC
    assert found[:, :, 0].tolist() == [[0, 64], [0, 255]]


def test_extra_channels_of_colours_may_be_left_out() -> None:
    array = numbers(24, 40, 4, kind="u1")
    opened = open_image(written(array, photometric="rgb", extrasamples=(0,)))
    assert np.array_equal(opened.decode(min_size=None, channels=4).pixels_HWC, array)
    assert np.array_equal(opened.decode(min_size=None, channels=3).pixels_HWC, array[:, :, :3])
    assert opened.decode(min_size=None, channels=1).pixels_HWC.shape == (24, 40, 1)
    with pytest.raises(DecodeError, match="it has 4 channels, and 6 are wanted"):
        opened.decode(min_size=None, channels=6)


def test_alpha_of_16_bits_is_laid_on_white() -> None:
    array = np.full((2, 2, 4), 1000, dtype=np.uint16)
    array[0, :, 3], array[1, :, 3] = 0, 65535
    found = stored(written(array, photometric="rgb", extrasamples=("unassalpha",)))
    assert found[:, 0].tolist() == [[65535] * 3, [1000] * 3]


def test_white_may_be_zero() -> None:
    array = np.array([[0, 65535]], dtype=np.uint16)
    assert stored(written(array, photometric="miniswhite"))[0, :, 0].tolist() == [65535, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_undone(orientation: int) -> None:
    upright = numbers(6, 9, kind="u2")
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    data = written(np.ascontiguousarray(turned), extratags=[(274, "H", 1, orientation, True)])
    assert np.array_equal(stored(data)[:, :, 0], upright)
    assert read_size(data) == (6, 9)
