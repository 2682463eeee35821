"""A zip archive is a folder; what cannot be read in place, and what claims too much, is refused."""

from __future__ import annotations

import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_shards import picture
from unmask.data.sources import open_source
from unmask.data.zips import ZipSource


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_it_is_laid_out_like_a_folder(photo_folder: Path, tmp_path: Path, method: int) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w", method) as opened:
        for file in sorted(photo_folder.rglob("*.*")):
            opened.write(file, f"./{file.relative_to(photo_folder)}")
        opened.writestr("notes.txt", "no image")
        opened.writestr("folder.jpg/", "")
    packed, loose = open_source(archive), open_source(photo_folder)
    assert packed.classes == loose.classes
    assert packed.labels is not None
    assert (packed.labels == loose.labels).all()
    assert [packed.read(i) for i in range(12)] == [loose.read(i) for i in range(12)]
    assert packed.path(0) == f"{archive}/cold/00.png"


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.binary(max_size=300), min_size=1, max_size=5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_names_and_contents(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], deflated: bool
) -> None:
    archive = tmp_path_factory.getbasetemp() / "any.zip"
    files = {name.translate({0: "x", 47: "y"}).lstrip(".") + ".png": content for name, content in files.items()}
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    try:
        with zipfile.ZipFile(archive, "w", method) as opened:
            for name, content in files.items():
                opened.writestr(name, content)
    except UnicodeEncodeError:  # what no file can be called
        return
    source = ZipSource("any", archive)
    found = {source.paths[index].decode(): source.read(index) for index in range(len(source))}
    assert found == {name: content for name, content in files.items() if not name.startswith(".")}


def zip_of(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    with zipfile.ZipFile(path, "w", method) as opened:
        opened.writestr("a.png", content)
    return bytearray(path.read_bytes())


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    content = zip_of(archive, picture(0))
    directory = content.index(b"PK\1\2")
    struct.pack_into("<I", content, directory + 24, 1 << 30)
    archive.write_bytes(content)
    with pytest.raises(OSError, match="it claims to have 1073741824 bytes, more than the 512000000 allowed"):
        open_source(archive).read(0)


@pytest.mark.parametrize("claimed", [0, 10, 5000])
def test_a_member_that_lies_about_its_size_is_damaged(tmp_path: Path, claimed: int) -> None:
    archive = tmp_path / "liar.zip"
    content = zip_of(archive, b"\0" * 10**6)
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 24, claimed)
    archive.write_bytes(content)
    with pytest.raises(OSError, match="it is damaged in the archive: its size or checksum is not the one noted"):
        open_source(archive).read(0)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_damage_does_more_than_be_said(tmp_path: Path, method: int) -> None:
    archive = tmp_path / "x.zip"
    whole = zip_of(archive, picture(3), method)
    expected = open_source(archive).read(0)
    generator = np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole)
        for place in generator.integers(0, len(content), 3).tolist():
            content[place] = int(generator.integers(0, 256))
        archive.write_bytes(content[: int(generator.integers(1, 2 * len(content)))])
        with suppress(ValueError, OSError):
            assert open_source(archive).read(0) == expected


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (8, 1, r"x.zip is encrypted \('a.png'\): unpack it first"),
        (10, 9, r"x.zip cannot be read in place, by its compression \('a.png'\): unpack it first"),
    ],
)
def test_kinds_that_cannot_be_read_in_place(tmp_path: Path, place: int, value: int, sentence: str) -> None:
    archive = tmp_path / "x.zip"
    content = zip_of(archive, b"1")
    content[content.index(b"PK\1\2") + place] = value
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        open_source(archive)


def test_what_is_no_zip_or_holds_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"x.zip cannot be read as a zip archive: File is not a zip file"):
        open_source(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("notes.txt", "1")
    with pytest.raises(ValueError, match=r"x.zip holds no image"):
        open_source(tmp_path / "x.zip")
