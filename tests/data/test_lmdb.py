"""An LMDB database of image files is a source, whatever its keys, in the main process and in workers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from tiny_shards import Numbers, colour_of, picture
from unmask.data.sources import open_source

lmdb = pytest.importorskip("lmdb")


def write_lmdb(path: Path, values: dict[bytes, bytes], *, folder: bool = True) -> Path:
    with lmdb.open(str(path), subdir=folder, map_size=1 << 22) as environment, environment.begin(write=True) as changes:
        for key, value in values.items():
            changes.put(key, value)
    return path


@pytest.mark.parametrize("folder", [True, False])
def test_keys_like_paths_are_a_folder(tmp_path: Path, folder: bool) -> None:
    values = {f"{'warm' if number % 2 else 'cold'}/{number:02d}.png".encode(): picture(number) for number in range(8)}
    path = write_lmdb(tmp_path / "x.lmdb", values | {b"__len__": b"8"}, folder=folder)
    source = open_source(path)
    assert [colour_of(source.read(index)) for index in range(8)] == [0, 2, 4, 6, 1, 3, 5, 7]
    assert source.labels is not None
    assert source.labels.tolist() == [0] * 4 + [1] * 4
    assert source.classes == ("cold", "warm")
    assert source.path(0) == f"{path}/cold/00.png"


def test_a_folder_with_any_name(tmp_path: Path) -> None:
    source = open_source(write_lmdb(tmp_path / "lsun", {b"a": picture(1), b"b": picture(2)}))
    assert [colour_of(source.read(index)) for index in range(2)] == [1, 2]
    assert source.labels is None


def test_keys_that_are_numbers(tmp_path: Path) -> None:
    values = {number.to_bytes(8, "big"): picture(number) for number in (1, 256, 512)}
    source = open_source(write_lmdb(tmp_path / "x.lmdb", values))
    assert [colour_of(source.read(index)) for index in range(3)] == [1, 256, 512]
    assert source.path(1) == f"{tmp_path}/x.lmdb/0000000000000100"


def test_workers_read_it_after_the_main_process_has(tmp_path: Path) -> None:
    values = {b"%02d" % number: picture(number) for number in range(12)}
    source = open_source(write_lmdb(tmp_path / "x.lmdb", values))
    assert colour_of(source.read(3)) == 3
    for number, batch in enumerate(DataLoader(Numbers(source), batch_size=2, num_workers=2)):
        assert batch.tolist() == [2 * number, 2 * number + 1]
        assert colour_of(source.read(number)) == number


def test_a_key_that_has_gone_is_a_bad_file(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "x.lmdb", {b"a": picture(1), b"b": picture(2)})
    source = open_source(path)
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as changes:
        changes.delete(b"a")
    with pytest.raises(OSError, match="it is no longer in the database"):
        source.read(0)
    for file in path.iterdir():
        file.unlink()
    with pytest.raises(OSError, match=r"it cannot be read: .*No such file"):
        source.read(1)


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.lmdb").write_bytes(b"garbage" * 1000)
    with pytest.raises(ValueError, match=r"x.lmdb cannot be read as an LMDB database: .*not an LMDB file"):
        open_source(tmp_path / "x.lmdb")
    with pytest.raises(ValueError, match="empty holds no image"):
        open_source(write_lmdb(tmp_path / "empty", {}))
    with pytest.raises(ValueError, match=r"other holds something else than image files: its first value begin.*x80"):
        open_source(write_lmdb(tmp_path / "other", {b"0": b"\x80\x04pickle"}))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match=r"need the library lmdb, which is missing: pip install 'unmask\[lmdb\]'"):
        open_source(tmp_path / "empty")
