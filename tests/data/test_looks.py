"""One look at one image: what its bytes, its header and its pixels tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.data.dataset import BadFile
from unmask.data.decode import DecodeError
from unmask.data.looks import look_at, looks
from unmask.data.sources import ArraySource, FileSource

COINS = Path(__file__).parents[1] / "data_files" / "coins" / "train" / "images"


def source_of(folder: Path, *names: str) -> FileSource:
    return FileSource(str(folder), folder, [name.encode() for name in names])


def test_the_header_alone_and_with_the_pixels(tmp_path: Path) -> None:
    content = (COINS / "upper.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content)
    source = source_of(tmp_path, "a.jpg")
    header, whole = (look_at(source, 0, decoded=decoded) for decoded in (False, True))
    with Image.open(COINS / "upper.jpg") as image:
        assert (header.width, header.height) == (whole.width, whole.height) == image.size
    assert (header.size, header.kind, header.pixels) == (len(content), "jpg", None)
    assert header.digest == whole.digest
    assert whole.pixels is not None
    assert whole.pixels.dtype == "uint8"
    assert whole.pixels.shares_CL.sum(axis=1) == pytest.approx(np.ones(whole.pixels.channels))


def test_grey_that_is_stored_in_colour(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    grey = Image.fromarray(generator.integers(0, 256, (40, 30), dtype=np.uint8)).resize((120, 160))
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "colour.jpg")
    Image.merge("RGB", [grey, grey, grey.point(lambda level: level // 2)]).save(tmp_path / "tinted.png")
    found = [
        look_at(source_of(tmp_path, name), 0, decoded=True).pixels for name in ("grey.png", "colour.jpg", "tinted.png")
    ]
    assert [(pixels.channels, pixels.grey) for pixels in found if pixels is not None] == [
        (1, True),
        (3, True),
        (3, False),
    ]


def test_arrays_are_told_apart_by_their_pixels_and_shape() -> None:
    arrays = [np.arange(48, dtype=np.uint8).reshape(shape) for shape in ((4, 4, 3), (4, 4, 3), (2, 8, 3), (4, 12))]
    source = ArraySource("given", arrays)
    found = [look_at(source, place, decoded=True) for place in range(4)]
    assert [look.kind for look in found] == ["arrays"] * 4
    assert found[0].digest == found[1].digest
    assert len({look.digest for look in found}) == 3
    assert (found[3].height, found[3].width, found[3].size) == (4, 12, 48)


def test_a_damaged_file_is_seen_when_it_is_decoded(tmp_path: Path) -> None:
    content = (COINS / "upper.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    source = source_of(tmp_path, "cut.jpg", "gone.jpg")
    assert look_at(source, 0, decoded=False).kind == "jpg"
    with pytest.raises(DecodeError):
        look_at(source, 0, decoded=True)
    with pytest.raises(OSError, match="No such file"):
        look_at(source, 1, decoded=False)


def test_several_processes_see_what_one_sees(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(70)]
    for name in names:
        Image.fromarray(generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "3.png").write_bytes(b"")
    positions = np.arange(0, 70, 2)
    positions[1] = 3
    decoded = positions % 4 == 0
    told = []
    for workers in (0, 2):
        found = [
            look for some in looks(source_of(tmp_path, *names), positions, decoded, workers=workers) for look in some
        ]
        assert [look.index for look in found] == positions.tolist()
        assert found[1] == BadFile(3, str(tmp_path / "3.png"), "the file is empty")
        told.append([(look.digest, look.pixels is None) for look in found if not isinstance(look, BadFile)])
    assert told[0] == told[1]
    assert [without for _, without in told[0]] == [not wanted for wanted in np.delete(decoded, 1).tolist()]
