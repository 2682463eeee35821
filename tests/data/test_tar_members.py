"""Our reading of tar archives agrees with the standard library's, and nothing in an archive can do harm."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_shards import write_tar
from unmask.data.tar_members import DamagedTar, Member, members

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
letters = st.characters(exclude_characters="\0/", exclude_categories=["Cs"])
parts = st.text(letters, min_size=1, max_size=40).filter(lambda part: part not in (".", ".."))
names = st.lists(parts, min_size=1, max_size=8).map("/".join)


def listed(path: Path) -> list[Member]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(members(descriptor))
    finally:
        os.close(descriptor)


def read(path: Path, member: Member) -> bytes:
    return path.read_bytes()[member.offset : member.offset + member.size]


@given(st.dictionaries(names, st.binary(max_size=1500), max_size=5), st.sampled_from(FORMATS))
@settings(max_examples=150, deadline=None)
def test_every_format_of_the_standard_library_is_read(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], kind: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tar"
    try:
        write_tar(path, files, kind=kind)
    except ValueError:  # a name that this format cannot hold
        return
    found = {member.name: read(path, member) for member in listed(path)}
    assert found == {name.encode(): content for name, content in files.items()}


def test_only_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "a.jpg").write_bytes(b"content")
    (tmp_path / "tree" / "deep" / "b.jpg").write_bytes(b"more")
    (tmp_path / "tree" / "soft.jpg").symlink_to("a.jpg")
    os.link(tmp_path / "tree" / "a.jpg", tmp_path / "tree" / "hard.jpg")
    os.mkfifo(tmp_path / "tree" / "pipe.jpg")
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        for name in ("a.jpg", "deep", "deep/b.jpg", "soft.jpg", "hard.jpg", "pipe.jpg"):
            tar.add(tmp_path / "tree" / name, f"./{name}", recursive=False)
    assert [member.name for member in listed(tmp_path / "tree.tar")] == [b"a.jpg", b"deep/b.jpg"]


def test_names_that_lead_elsewhere_are_only_names(tmp_path: Path) -> None:
    hostile = ["../../etc/x.jpg", "/etc/y.jpg", "a/../../z.jpg", "new\nline.jpg"]
    path = write_tar(tmp_path / "x.tar", dict.fromkeys(hostile, b"1"))
    assert [member.name.decode() for member in listed(path)] == hostile
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.tar"]


def test_a_missing_end_is_no_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a": b"1"})
    path.write_bytes(path.read_bytes()[:1024])
    assert [member.name for member in listed(path)] == [b"a"]


def header(kind: bytes, size: int, name: str = "a") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(record: bytes) -> bytes:
    return header(b"x", len(record)) + record.ljust(512, b"\0") + header(b"0", 0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"x" * 100, "is cut short"),
        (b"x" * 1024, "is no uncompressed tar archive, or is damaged"),
        (gzip.compress(header(b"0", 0) * 40, mtime=0).ljust(1024, b"\1"), "is no uncompressed tar archive, or is dam"),
        (header(b"0", 5000), "is cut short"),
        (header(b"0", 1 << 60), "is cut short"),
        (header(b"S", 0), "holds a sparse file, which cannot be read in place"),
        (header(b"L", 1 << 40), "has a header of 1099511627776 bytes, more than the 1048576 allowed"),
        (header(b"x", 1000), "is cut short"),
        (pax(b"30 GNU.sparse.realsize=100000\n"), "holds a sparse file"),
        (pax(b"99 path=short\n"), "has a damaged header"),
        (pax(b"0 path=short\n"), "has a damaged header"),
        (pax(b"path=short\n"), "has a damaged header"),
        (pax(b"9999999999999999999999 path=short\n"), "has a damaged header"),
        (pax(b"11 size=-1\n"), "has a damaged header"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DamagedTar, match=f"^{sentence}"):
        listed(tmp_path / "x.tar")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_damage_does_more_than_be_said(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    kind = data.draw(st.sampled_from(FORMATS))
    path = write_tar(folder / "harmed.tar", {"ä" * 60 + "/" + "b" * 60: b"content", "b.cls": b"1"}, kind=kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    path.write_bytes(content)
    try:
        found = listed(path)
    except DamagedTar:
        return
    assert all(member.offset + member.size <= len(content) for member in found)


def test_a_checksum_of_signed_bytes_is_right_too(tmp_path: Path) -> None:
    block = bytearray(header(b"0", 0, "ä.jpg"))
    unsigned = int(block[148:154], 8)
    block[148:156] = b"%06o\0 " % (unsigned - 256 * 2)
    (tmp_path / "x.tar").write_bytes(block)
    assert [member.name for member in listed(tmp_path / "x.tar")] == ["ä.jpg".encode()]
    with tarfile.open(fileobj=io.BytesIO(bytes(block).ljust(10240, b"\0"))) as tar:
        assert tar.getnames() == ["ä.jpg"]
