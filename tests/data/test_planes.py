"""Images of a file a channel: what belongs together, in which order, and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unmask.data.decode import DecodeError
from unmask.data.planes import channel_word, channels_of, grouped, joined, natural, plane_of
from unmask.data.sources import open_source


def plane(path: Path, value: int, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.full((side, side), value, dtype=np.uint16))


@given(
    images=st.sets(st.from_regex(rb"[A-H]\d{2}_s\d", fullmatch=True), min_size=1, max_size=5),
    word=st.sampled_from([b"w", b"ch", b"C", b"B", b"channel", b"c", b"band"]),
    channels=st.integers(2, 12),
    separator=st.sampled_from([b"_", b"-", b"."]),
    folder=st.sampled_from([b"", b"train/cells/"]),
    behind=st.sampled_from([b"", b"_z1"]),
)
@settings(max_examples=25, deadline=None)
def test_files_that_differ_in_a_channel_are_one_image(
    images: set[bytes], word: bytes, channels: int, separator: bytes, folder: bytes, behind: bytes
) -> None:
    files = [
        folder + image + separator + word + b"%d" % channel + behind + b".tif"
        for image in images
        for channel in range(1, channels + 1)
    ]
    found = grouped(sorted(files))
    assert len(found) == len(images)
    assert channels_of(found) == tuple(word + b"%d" % channel for channel in range(1, channels + 1))
    assert all(image.startswith(folder) for image in found)
    assert sorted(file for planes in found.values() for file in planes.values()) == sorted(files)


@given(st.lists(st.sampled_from([b"B01", b"B02", b"B8A", b"DAPI", b"nir"]), min_size=2, unique=True))
@settings(max_examples=10, deadline=None)
def test_files_in_a_folder_of_their_own_are_one_image(names: list[bytes]) -> None:
    files = [b"class/tile_%02d/%s.tif" % (tile, name) for tile in range(3) for name in names]
    assert channel_word(files) is None
    assert set(grouped(files)) == {b"class/tile_00", b"class/tile_01", b"class/tile_02"}


def test_of_two_words_the_one_that_varies_within_an_image_counts() -> None:
    files = [b"r%d_c%d_ch%d.png" % (row, row % 2, channel) for row in range(4) for channel in range(3)]
    assert channel_word(files) == b"ch"
    assert plane_of(b"a/S2_T32_B8A.tif", b"b").channel == b"B8A"


def test_channels_are_in_natural_order() -> None:
    names = [b"B11", b"B8A", b"B02", b"B09", b"B08", b"B1"]
    assert sorted(names, key=natural) == [b"B1", b"B02", b"B08", b"B8A", b"B09", b"B11"]


def test_planes_of_a_satellite(tmp_path: Path) -> None:
    for kind in ("field", "town"):
        for tile in range(5):
            for place, (band, side) in enumerate((("B02", 12), ("B03", 12), ("B11", 6), ("B01", 2))):
                plane(tmp_path / kind / f"tile_{tile}" / f"{band}.tif", 100 * (place + 1), side)
    (tmp_path / "town" / "tile_3" / "B11.tif").unlink()
    (tmp_path / "town" / "tile_4" / "B11.tif").write_bytes(b"no image")
    source = open_source(f"planes:{tmp_path}")
    assert (len(source), source.classes) == (10, ("field", "town"))
    assert source.channel_names == ("B01", "B02", "B03", "B11")
    opened = source.open(0)
    assert (opened.height, opened.width, opened.channels, opened.dtype) == (12, 12, 4, "uint16")
    assert source.read(0)[5, 7].tolist() == [400, 100, 200, 300]  # type: ignore[index, union-attr]
    with pytest.raises(DecodeError, match=r"^it lacks the plane B11 of 4$"):
        source.read(8)
    with pytest.raises(DecodeError, match=r"^its plane B11: it is not an image of a known format$"):
        source.read(9)
    halves = [open_source(f"planes:{tmp_path}", split=split) for split in ("train", "test")]
    assert sum(map(len, halves)) == 10
    assert all(half.channel_names == source.channel_names and half.classes == source.classes for half in halves)


def test_planes_of_a_microscope(tmp_path: Path) -> None:
    for well in ("A01", "A02"):
        for channel in range(1, 4):
            Image.fromarray(np.full((8, 9), 10 * channel, dtype=np.uint8)).save(tmp_path / f"{well}_w{channel}.png")
    source = open_source(f"planes:{tmp_path}")
    assert [Path(source.path(place)).name for place in range(len(source))] == ["A01", "A02"]
    assert source.open(1).dtype == "uint8"
    assert source.open(1).decode(min_size=None, channels=3).pixels_HWC[0, 0].tolist() == [10, 20, 30]


def test_planes_with_holes_have_no_numbers_there() -> None:
    whole, part = np.ones((4, 4), dtype=np.uint16), np.full((4, 4), np.nan, dtype=np.float32)
    found = joined([whole, part])
    assert found.dtype == np.float32
    assert np.isnan(found[:, :, 1]).all()
    assert (found[:, :, 0] == 1).all()


@pytest.mark.parametrize("place", ["missing", "empty", "photos"])
def test_what_holds_no_planes_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "photos" / "one.png")
    said = {"missing": "there is no folder", "empty": "holds no image", "photos": "no images of several files each"}
    with pytest.raises(ValueError, match=said[place]):
        open_source(f"planes:{tmp_path / place}")
