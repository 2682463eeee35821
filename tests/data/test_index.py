"""The index finds every image once, quickly the second time, and notices every change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.index import cache_folder, index_folder
from unmask.data.paths import PathTable


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unmask"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def settle(root: Path) -> None:
    """Make all folders look unchanged for a while: a cache is kept only then."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (1e9, 1e9))


def large_folder(root: Path) -> Path:
    for folder in ("a", "b/c"):
        (root / folder).mkdir(parents=True)
        for number in range(1500):
            os.close(os.open(root / folder / f"{number}.jpg", os.O_CREAT))
    settle(root)
    return root


names = st.lists(st.binary(min_size=1, max_size=6).map(lambda name: name.replace(b"\0", b"/")), unique=True)


@given(names)
@settings(max_examples=100, deadline=None)
def test_a_table_is_a_sorted_list(paths: list[bytes]) -> None:
    table = PathTable.of(paths)
    assert list(table) == sorted(paths)
    assert [table[i] for i in range(len(table))] == sorted(paths)
    assert table[1:] == sorted(paths)[1:]
    folders = {path[: path.index(b"/") + 1] for path in paths if b"/" in path}
    for folder in folders:
        inside = table.prefixed(folder)
        assert [table[i] for i in inside] == sorted(p for p in paths if p.startswith(folder))
        assert table.end_of(folder, inside.start) == inside.stop


def test_images_are_found_at_any_depth_by_any_extension(tmp_path: Path) -> None:
    found = [
        "a.jpg",
        "B.JPEG",
        "c/d.Png",
        "c/e/f/g.webp",
        "h.tif",
        "i.TIFF",
        "j.bmp",
        "ä/日本 語.jpg",
        "k.x.jpg",
    ]
    touch(tmp_path, *found, "notes.txt", "jpg", "l.jpg.part", ".hidden.jpg", ".git/m.jpg", "c/._d.png")
    assert [os.fsdecode(path) for path in index_folder(tmp_path)] == sorted(found, key=os.fsencode)


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"\xff\xfe.jpg"), "wb"):
        pass
    assert list(index_folder(tmp_path)) == [b"\xff\xfe.jpg"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "root/a/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "self").symlink_to(".")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "3.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root" / "a")
    found = [os.fsdecode(path) for path in index_folder(tmp_path / "root")]
    assert found == ["3.jpg", "a/1.jpg", "b/2.jpg", "b/back/1.jpg"]


def test_an_unchanged_folder_is_read_from_the_cache(tmp_path: Path, own_cache: Path) -> None:
    root = large_folder(tmp_path / "images")
    first = list(index_folder(root))
    assert len(first) == 3000
    assert len(list(own_cache.iterdir())) == 1
    # A new file with its folder's time set back is what only the cache can miss: so it was used.
    touch(root, "a/new.jpg")
    settle(root)
    assert list(index_folder(root)) == first


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new folder", "remove folder"])
def test_every_change_is_noticed(tmp_path: Path, change: str) -> None:
    root = large_folder(tmp_path / "images")
    expected = set(index_folder(root))
    if change == "add":
        touch(root, "b/c/new.jpg")
        expected |= {b"b/c/new.jpg"}
    elif change == "remove":
        (root / "a" / "0.jpg").unlink()
        expected -= {b"a/0.jpg"}
    elif change == "rename":
        (root / "a" / "0.jpg").rename(root / "a" / "zero.jpg")
        expected ^= {b"a/0.jpg", b"a/zero.jpg"}
    elif change == "new folder":
        touch(root, "b/d/new.jpg")
        expected |= {b"b/d/new.jpg"}
    else:
        for file in (root / "a").iterdir():
            file.unlink()
        (root / "a").rmdir()
        expected = {path for path in expected if path.startswith(b"b/")}
    assert set(index_folder(root)) == expected


def test_a_folder_still_changing_is_not_cached(tmp_path: Path, own_cache: Path) -> None:
    root = large_folder(tmp_path / "images")
    touch(root, "a/new.jpg")
    assert len(index_folder(root)) == 3001
    assert not own_cache.exists()


def test_small_folders_are_not_cached(tmp_path: Path, own_cache: Path) -> None:
    touch(tmp_path / "images", "a.jpg")
    settle(tmp_path / "images")
    index_folder(tmp_path / "images")
    assert not own_cache.exists()


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_cache_is_replaced(tmp_path: Path, own_cache: Path, damage: bytes | None) -> None:
    root = large_folder(tmp_path / "images")
    index_folder(root)
    (cache,) = own_cache.iterdir()
    content = cache.read_bytes()
    cache.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert len(index_folder(root)) == 3000
    assert cache.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, own_cache: Path) -> None:
    root = large_folder(tmp_path / "images")
    own_cache.parent.write_text("a file where the folder should be")
    assert len(index_folder(root)) == 3000


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache" / "unmask"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "unmask"


def test_a_missing_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        index_folder(tmp_path / "nowhere")
