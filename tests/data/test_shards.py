"""Tar shards on this disk: every spelling of where they are, labels, captions, and one sentence for what is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from tiny_shards import colour_of, picture, write_shards, write_tar
from unmask.data import shards as shards_module
from unmask.data.shard_table import (
    ARRAYS_FILE,
    DamagedIndex,
    Listing,
    Shard,
    ShardTable,
    check_names,
    index_facts,
    joined,
    list_shard,
    read_table,
    table_of,
)
from unmask.data.shards import expand_braces
from unmask.data.sources import Source, labelled, open_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unmask"


def numbers(source: Source) -> list[int]:
    return [colour_of(source.read(index)) for index in range(len(source))]


def write_index(folder: Path) -> None:
    """What `unmask shard` leaves beside shards."""
    paths = sorted(folder.glob("*.tar"))
    table = table_of([Shard(path.name, path.stat().st_size) for path in paths], [list_shard(path) for path in paths])
    arrays = table.arrays()
    (folder / ARRAYS_FILE).write_bytes(arrays)
    (folder / "index.json").write_text(json.dumps(index_facts(table, arrays, {})))


@pytest.mark.parametrize("spelling", ["folder", "pattern", "list", "index.json", "folder with an index"])
def test_every_spelling_means_the_same_images(tmp_path: Path, spelling: str) -> None:
    write_shards(tmp_path / "set")
    if "index" in spelling:
        write_index(tmp_path / "set")
    spec = {
        "pattern": tmp_path / "set" / "train-{000000..000002}.tar",
        "list": tmp_path / "set" / "train-00000{0,1,2}.tar",
        "index.json": tmp_path / "set" / "index.json",
    }.get(spelling, tmp_path / "set")
    source = open_source(spec)
    assert numbers(source) == list(range(12))
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1] * 6
    assert source.classes == ("0", "1")
    assert source.captions() == tuple((f"number {number}",) for number in range(12))
    assert source.path(5) == f"{tmp_path}/set/train-000001.tar/000005.png"
    assert source.shards is not None
    assert source.shards.tolist() == [0, 4, 8]


def test_a_pattern_chooses_some_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    assert numbers(open_source(tmp_path / "train-{000002..000002}.tar")) == [8, 9, 10, 11]


def test_a_reader_of_plain_tar_files_sees_the_same(tmp_path: Path) -> None:
    """The layout of webdataset, read by its definition: members that share a key are one sample."""
    write_shards(tmp_path / "set")
    samples: dict[str, dict[str, bytes]] = defaultdict(dict)
    for path in sorted((tmp_path / "set").iterdir()):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                samples[key][extension] = content.read()
    source = open_source(tmp_path / "set")
    assert [source.read(index) for index in range(12)] == [sample["png"] for sample in samples.values()]
    assert source.labels is not None
    assert source.labels.tolist() == [int(sample["cls"]) for sample in samples.values()]


def test_where_shards_begin_in_a_selection(tmp_path: Path) -> None:
    write_shards(tmp_path)
    source = open_source(tmp_path)
    for chosen, expected in (
        ([0, 1, 5, 8, 9], [0, 2, 3]),
        ([3, 2, 11, 10], [0, 2]),
        ([5], [0]),
        ([5, 1], None),
        ([], None),
    ):
        found = source.subset(chosen).shards
        assert (None if found is None else found.tolist()) == expected
    again = source.subset([1, 2, 5, 8]).subset([1, 3]).shards
    assert again is not None
    assert again.tolist() == [0, 1]
    assert open_source("builtin:emoji").shards is None


def test_shards_without_images_count_for_nothing(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": picture(0)})
    write_tar(tmp_path / "b.tar", {"notes.txt": b"nothing"})
    write_tar(tmp_path / "c.tar", {"1.png": picture(1), "2.png": picture(2)})
    source = open_source(tmp_path)
    assert numbers(source) == [0, 1, 2]
    assert source.shards is not None
    assert source.shards.tolist() == [0, 1]
    assert source.path(1) == f"{tmp_path}/c.tar/1.png"


def test_folders_and_names_of_splits(tmp_path: Path) -> None:
    write_shards(tmp_path / "folders" / "train", 2)
    write_shards(tmp_path / "folders" / "val", 1)
    write_shards(tmp_path / "names", 2, stem="set-train")
    for path in write_shards(tmp_path / "more", 1, stem="set-val"):
        shutil.move(path, tmp_path / "names")
    for folder in ("folders", "names"):
        train, test = labelled(tmp_path / folder)
        assert (len(train), len(test)) == (8, 4)
        assert len(open_source(tmp_path / folder)) == 8
    write_index(tmp_path / "names")
    assert [len(part) for part in labelled(tmp_path / "names")] == [8, 4]


def test_without_splits_a_hash_of_the_name_decides(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, 40)
    train, test = labelled(tmp_path)
    assert sorted(numbers(train) + numbers(test)) == list(range(120))
    assert 10 < len(test) < 40
    assert train.shards is not None
    assert len(train.shards) == 3


def test_classes_are_numbers_or_words_or_none(tmp_path: Path) -> None:
    def classes(*words: str | None) -> tuple[Any, Any]:
        members = {}
        for number, word in enumerate(words):
            members[f"{number}.png"] = picture(number)
            if word is not None:
                members[f"{number}.cls"] = word.encode()
        write_tar(tmp_path / "set" / "x.tar", members)
        source = open_source(tmp_path / "set")
        return source.labels if source.labels is None else source.labels.tolist(), source.classes

    assert classes("10", " 9\n", "10") == ([1, 0, 1], ("9", "10"))
    assert classes("dog", "cat", "10") == ([2, 1, 0], ("10", "cat", "dog"))
    assert classes("dog", None) == (None, None)


def test_captions_are_texts_or_json(tmp_path: Path) -> None:
    several, odd = b'{"caption": ["a", " b ", 3]}', b'{"caption": {"no": 1}}'
    members = {
        "0.png": picture(0),
        "0.txt": b" one\ntwo ",
        "0.json": several,
        "1.json": several,
        "1.png": picture(1),
        "2.png": picture(2),
        "2.json": b"not json",
        "3.png": picture(3),
        "3.json": odd,
    }
    write_tar(tmp_path / "x.tar", members)
    assert open_source(tmp_path).captions() == (("one\ntwo",), ("a", "b"), (), ())


def test_which_members_are_images(tmp_path: Path) -> None:
    members = {
        "a/0.seg.png": picture(9),
        "a/0.JPG": picture(0, kind="JPEG"),
        "a/0.cls": b"7",
        "1.left.png": picture(1),
        "1.right.png": picture(2),
        "1.cls": b"8",
        ".hidden.png": picture(9),
        "2.txt": b"no image",
    }
    write_tar(tmp_path / "x.tar", members)
    source = open_source(tmp_path)
    assert [source.path(index) for index in range(len(source))] == [
        f"{tmp_path}/x.tar/{name}" for name in ("a/0.JPG", "1.left.png", "1.right.png")
    ]
    assert source.classes == ("7", "8")


def test_images_beside_shards_are_a_folder_as_before(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "0.png").write_bytes(picture(0))
    source = open_source(tmp_path)
    assert len(source) == 1
    assert source.shards is None


def test_an_index_of_another_tool_is_none_of_ours(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "index.json").write_text('{"wids_version": 1, "shardlist": []}')
    assert numbers(open_source(tmp_path)) == list(range(12))


def test_a_shard_cut_short_after_it_was_listed_is_a_bad_file(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, 1)
    source = open_source(tmp_path)
    os.truncate(path, 600)
    assert colour_of(source.read(0)) == 0
    with pytest.raises(OSError, match=r"train-000000.tar is cut short"):
        source.read(3)
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        source.read(0)


def test_a_listing_is_kept_until_a_shard_changes(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def counted(path: Path) -> Listing:
        asked.append(path)
        return list_shard(path)

    monkeypatch.setattr(shards_module, "list_shard", counted)
    folder = tmp_path / "set"
    for shard in range(2):
        write_tar(folder / f"{shard}.tar", {f"{number}.png": b"x" for number in range(600)})
        os.utime(folder / f"{shard}.tar", (1e9, 1e9))
    first = open_source(folder)
    assert len(asked) == 2
    again = open_source(folder)
    assert len(asked) == 2
    assert [again.path(index) for index in (0, 1199)] == [first.path(index) for index in (0, 1199)]
    assert again.read(700) == b"x"
    os.utime(folder / "1.tar", (1e9, 2e9))
    assert len(open_source(folder)) == 1200
    assert len(asked) == 4
    (file,) = own_cache.iterdir()
    file.write_bytes(file.read_bytes()[:2000])
    os.utime(folder / "1.tar", (1e9, 1e9))
    assert len(open_source(folder)) == 1200
    assert len(asked) == 6


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a{08..11}.tar", ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]),
        ("{a,b}{0..1}.tar", ["a0.tar", "a1.tar", "b0.tar", "b1.tar"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("a{0..9999999999}.tar", "means more than 1000000 shards"),
        ("{0..9999}{0..9999}.tar", "means more than 1000000 shards"),
        ("a{0..3.tar", "has braces that do not match"),
        ("a{0..{1}}.tar", "has braces that do not match"),
    ],
)
def test_braces_that_make_no_sense(pattern: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{pattern.replace('{', '.').replace('}', '.')} {sentence}"):
        open_source(pattern)


def damage_shard(folder: Path) -> None:
    (folder / "train-000001.tar").write_bytes(b"no tar at all" * 100)


def forget_shard(folder: Path) -> None:
    write_index(folder)
    (folder / "train-000001.tar").unlink()


def lengthen_shard(folder: Path) -> None:
    write_index(folder)
    with (folder / "train-000001.tar").open("ab") as file:
        file.write(b"more")


def forget_arrays(folder: Path) -> None:
    write_index(folder)
    (folder / ARRAYS_FILE).unlink()


def other_arrays(folder: Path) -> None:
    write_index(folder)
    (folder / ARRAYS_FILE).write_bytes(b"others")


def no_json(folder: Path) -> None:
    (folder / "index.json").write_text('{"unmask_shards": ' + "[" * 100_000)


def foreign_json(folder: Path) -> None:
    (folder / "index.json").write_text('{"shardlist": []}')


def newer_index(folder: Path) -> None:
    (folder / "index.json").write_text('{"unmask_shards": 2}')


@pytest.mark.parametrize(
    ("harm", "spec", "sentence"),
    [
        (damage_shard, "set", "set/train-000001.tar is no uncompressed tar archive, or is damaged"),
        (forget_shard, "set", "set/train-000001.tar cannot be read, but .*set/index.json names it"),
        (lengthen_shard, "set", "set/train-000001.tar has 20484 bytes where .*set/index.json says 20480"),
        (forget_arrays, "set", "set/index.safetensors cannot be read: no such file or directory"),
        (other_arrays, "set", "set/index.json does not belong to the index.safetensors beside it"),
        (no_json, "set", "set/index.json is not JSON"),
        (foreign_json, "set/index.json", "set/index.json is no index of unmask shard"),
        (newer_index, "set", "set/index.json has shard index format 2, this version reads 1"),
        (
            lambda folder: None,
            "set/train-{000001..000004}.tar",
            "set/train-{000001..000004}.tar means 4 shards, of which .*train-000003.tar .and 1 more. does not exist",
        ),
        (lambda folder: write_tar(folder / "x" / "x.tar", {"a.txt": b""}), "set/x", "set/x holds no image"),
        (lambda folder: None, "set/train-{3..2}.tar", "means no shard at all"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, harm: Any, spec: str, sentence: str) -> None:
    write_shards(tmp_path / "set")
    harm(tmp_path / "set")
    with pytest.raises(ValueError, match=sentence) as raised:
        open_source(tmp_path / spec)
    assert "\n" not in str(raised.value)


texts = st.binary(max_size=5).map(lambda text: text.replace(b"\0", b"x") + b".jpg")


images = st.tuples(texts, st.integers(0, 9), st.sampled_from([b"1", b"12", b"cat"]), st.sampled_from([b"[]", b'["a"]']))


def table_with(contents: list[list[tuple[bytes, int, bytes, bytes]]], checksum: str | None) -> ShardTable:
    """Shards of images with these names, sizes, classes and captions."""
    shards, listings = [], []
    for number, rows in enumerate(contents):
        sizes = np.array([size for _, size, _, _ in rows], dtype=np.int64)
        offsets = np.arange(len(rows), dtype=np.int64) * 512
        shards.append(Shard(f"{number}.tar", 512 * len(rows) + 9, checksum))
        named, words, said = (joined(row[place] for row in rows) for place in (0, 2, 3))
        listings.append(Listing(named, offsets, sizes, words, said))
    return table_of(shards, listings)


@given(st.lists(st.lists(images, max_size=4), max_size=3), st.sampled_from([None, "0" * 64]))
@settings(max_examples=100, deadline=None)
def test_an_index_is_read_as_it_was_written(
    contents: list[list[tuple[bytes, int, bytes, bytes]]], checksum: str | None
) -> None:
    table = table_with(contents, checksum)
    arrays = table.arrays()
    again = read_table(json.loads(json.dumps(index_facts(table, arrays, {}))), arrays)
    assert again.facts() == table.facts()
    assert again.arrays() == arrays == table.arrays()
    assert list(again.names) == list(table.names)
    assert again.texts() == table.texts()
    whole = table.of_shards(range(len(table.shards)))
    assert (whole.facts(), whole.arrays()) == (table.facts(), arrays)


LIES: dict[str, Any] = {
    "offsets": lambda values: values + 10**6,
    "sizes": lambda values: -values - 1,
    "labels": lambda values: values + 2,
    "names": lambda values: values[:-1],
    "captions": lambda values: values[values != 0],
}


@pytest.mark.parametrize("array", LIES)
@pytest.mark.parametrize("how", ["lie", "drop", "type", "shape"])
def test_an_index_that_contradicts_itself_is_refused(tmp_path: Path, array: str, how: str) -> None:
    paths = write_shards(tmp_path)
    table = table_of([Shard(path.name, path.stat().st_size) for path in paths], [list_shard(path) for path in paths])
    arrays = load(table.arrays())
    if how == "drop":
        del arrays[array]
    else:
        change = {"lie": LIES[array], "type": lambda values: values.astype(np.float32), "shape": lambda v: v[None]}
        arrays[array] = change[how](arrays[array])
    if (array, how) == ("captions", "drop"):
        assert read_table(table.facts(), save(arrays)).captions is None
        return
    with pytest.raises(DamagedIndex, match="contradicts itself or is damaged"):
        read_table(table.facts(), save(arrays))


@pytest.mark.parametrize(
    "change",
    [
        {"shards": None},
        {"shards": [{"name": "x"}]},
        {"classes": [1, 2]},
        {"classes": None},
        {"shards": [{"name": "x", "bytes": 10**30, "sha256": None, "images": 12}]},
        {"shards": [{"name": "x", "bytes": 99999, "sha256": "z" * 64, "images": 12}]},
        {"shards": [{"name": "x", "bytes": 99999, "sha256": None, "images": -12}]},
    ],
)
def test_facts_that_contradict_the_arrays_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    paths = write_shards(tmp_path)
    table = table_of([Shard(path.name, path.stat().st_size) for path in paths], [list_shard(path) for path in paths])
    with pytest.raises(DamagedIndex, match="contradicts itself or is damaged"):
        read_table(table.facts() | change, table.arrays())


@pytest.mark.parametrize("name", ["", "..", "../x.tar", "/etc/passwd", "a\\b.tar", "x.tar?y", "x\0y"])
def test_an_index_names_only_files_beside_it(name: str) -> None:
    nothing, none = joined([]), np.empty(0, np.int64)
    table = table_of([Shard("x.tar", 10)], [Listing(nothing, none, none, nothing, nothing)])
    check_names(table)
    with pytest.raises(DamagedIndex, match="which is no file beside it"):
        check_names(dataclasses.replace(table, shards=(Shard(name, 10),)))
