"""What goes into a shard, under which name, and that the same images always make the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tiny_runs import draw_images
from tiny_shards import colour_of, picture, write_shards
from unmask.data import shard_writing
from unmask.data.decode import DecodeError, decode
from unmask.data.shard_folder import Plan, ShardFolder
from unmask.data.shard_writing import make_sample, safe_key, write_shard
from unmask.data.sharding import Job, Stopped, images_for, names_checksum, relative_name, shuffled, write_source
from unmask.data.sources import ArraySource, Source, open_source
from unmask.data.stored import StoredPixels
from unmask.errors import Failure


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(source: Source, out: Path, *, images: int = 4, seed: int | None = 0, workers: int = 1) -> Source:
    folder = ShardFolder(out)
    plan = Plan(data="x", split="all", seed=seed, images=images, megabytes=None, names=names_checksum(source))
    assert not folder.claim(plan)
    job = Job(source, source.captions(), shuffled(len(source), seed), images, folder)
    done = write_source(job, workers, stop=lambda: False, report=lambda count: None)
    folder.finish(plan, done, source.classes)
    return open_source(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_that_a_source_knows_is_in_its_shards(tmp_path: Path) -> None:
    draw_images(tmp_path / "data", 10, classes=("warm", "cold", "odd"))
    with (tmp_path / "data" / "captions.csv").open("a") as file:
        file.write("warm/000.png,a second one\n")
    source = open_source(tmp_path / "data")
    shards = write(source, tmp_path / "out", seed=None)
    assert [shards.read(index) for index in range(10)] == [source.read(index) for index in range(10)]
    assert source.labels is not None
    assert shards.labels is not None
    assert shards.labels.tolist() == source.labels.tolist()
    assert shards.classes == source.classes == ("cold", "odd", "warm")
    assert shards.captions() == source.captions()
    assert shards.shards is not None
    assert shards.shards.tolist() == [0, 4, 8]
    assert shards.path(0) == f"{tmp_path}/out/shard-000000.tar/cold/001.png"


def test_the_bytes_depend_on_nothing_else(tmp_path: Path) -> None:
    draw_images(tmp_path / "data", 22)
    source = open_source(tmp_path / "data")
    write(source, tmp_path / "one", seed=3)
    os.umask(os.umask(0o077))
    write(source, tmp_path / "two", seed=3, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    other = write(source, tmp_path / "other", seed=4)
    assert contents(tmp_path / "one") != contents(tmp_path / "other")
    assert sorted(other.read(index) for index in range(22)) == sorted(source.read(index) for index in range(22))
    with tarfile.open(tmp_path / "one" / "shard-000000.tar") as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in tar} == {
            (0, 0, 0, "", 0o644)
        }


def test_classes_that_do_not_occur_keep_their_numbers(tmp_path: Path) -> None:
    source = ArraySource("x", np.zeros((3, 4, 4), np.uint8), labels=[2, 0, 2], classes=("z", "y", "x"))
    shards = write(source, tmp_path / "out", seed=None)
    assert shards.labels is not None
    assert shards.labels.tolist() == [2, 0, 2]
    assert shards.classes == ("z", "y", "x")


def test_arrays_become_png(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(5, 7), (5, 7, 1), (5, 7, 3)]
    images = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    shards = write(ArraySource("x", images), tmp_path / "out", seed=None)
    for index, image in enumerate(images):
        content = shards.read(index)
        assert isinstance(content, bytes)
        assert content.startswith(b"\x89PNG")
        channels = 3 if image.ndim == 3 and image.shape[2] == 3 else 1
        read = decode(content, min_size=None, channels=channels).pixels_HWC
        assert (read == image.reshape(5, 7, channels)).all()


def test_arrays_that_no_png_holds_become_npy(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = [
        generator.integers(0, 256, (5, 7, 4), dtype=np.uint8),
        generator.integers(0, 4000, (5, 7, 3), dtype=np.uint16),
        generator.random((5, 7)).astype(np.float32),
    ]
    shards = write(ArraySource("x", images), tmp_path / "out", seed=None)
    for index, image in enumerate(images):
        content = shards.open(index).content
        assert isinstance(content, StoredPixels)
        assert np.array_equal(content.values_HWC, image if image.ndim == 3 else image[:, :, None])
    with pytest.raises(DecodeError, match="which axis is that of the channels"):
        make_sample("x", np.zeros((5, 6, 5), np.uint8))


def test_what_cannot_be_used_is_left_out_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    draw_images(folder, 6, classes=("",))
    (folder / "001.png").write_bytes(b"no image")
    (folder / "003.png").unlink()
    (folder / "003.png").symlink_to("nowhere")
    gif = io.BytesIO()
    Image.new("L", (4, 4)).save(gif, "GIF")
    (folder / "005.png").write_bytes(gif.getvalue())
    (folder / "captions.csv").unlink()
    shards = write(open_source(folder), tmp_path / "out", seed=None)
    assert [shards.path(index)[-7:] for index in range(len(shards))] == ["000.png", "002.png", "004.png"]
    lines = (tmp_path / "out" / "bad_files.txt").read_text().splitlines()
    assert lines == [
        f"{folder}/001.png\tit is not an image of a known format",
        f"{folder}/003.png\tNo such file or directory",
        f"{folder}/005.png\tit is neither a JPEG, PNG, WebP, TIFF, BMP, .npy nor DICOM file",
    ]


def test_shards_can_be_made_of_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "from")
    shards = write(open_source(tmp_path / "from"), tmp_path / "out", images=5, seed=None)
    assert [colour_of(shards.read(index)) for index in range(12)] == list(range(12))
    assert shards.path(11) == f"{tmp_path}/out/shard-000002.tar/000011.png"


@given(st.text(max_size=400))
@settings(max_examples=300, deadline=None)
def test_a_key_goes_only_down_and_ends_at_its_first_dot(path: str) -> None:
    key = safe_key(path)
    parts = key.split("/")
    assert key
    assert len(key.encode()) <= 200
    assert not {"", ".", ".."} & set(parts)
    assert "." not in parts[-1]
    assert "\\" not in key
    assert key.isprintable() or not key.isascii()


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("cold/00.png", "cold/00"),
        ("a.b/c.d.jpeg", "a.b/c_d"),
        ("../../etc/x.jpg", "etc/x"),
        ("/abs/./x", "abs/x"),
        ("a\\b:c.png", "a_b_c"),
        ("", "image"),
        (".jpg", "_jpg"),
        ("ä" * 150 + ".jpg", "ä" * 100),
    ],
)
def test_keys(path: str, key: str) -> None:
    assert safe_key(path) == key


def test_equal_keys_are_told_apart(tmp_path: Path) -> None:
    samples = [make_sample("x", picture(number)) for number in range(3)]
    assert write_shard(tmp_path / "x.tar", samples)[0] == 3
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.getnames() == ["x.png", "x-2.png", "x-3.png"]


def test_names_below_what_the_user_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "1.png").write_bytes(picture(1))
    (tmp_path / "data" / "list.txt").write_text(f"a/1.png\n{tmp_path}/elsewhere.png\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in (f"{tmp_path}/data", f"{tmp_path}/data/", "~/data"):
        assert relative_name(open_source(spec), 0) == "a/1.png"
    source = open_source(tmp_path / "data" / "list.txt")
    assert [relative_name(source, index) for index in range(2)] == ["a/1.png", "elsewhere.png"]
    assert relative_name(open_source("builtin:fashion-mnist"), 7) == "7"


def test_images_of_a_size(tmp_path: Path) -> None:
    draw_images(tmp_path / "data", 20)
    source = open_source(tmp_path / "data")
    mean = sum(len(source.read(index)) for index in range(20)) / 20
    assert images_for(source, 5 * mean / 1e6) == 5
    assert images_for(source, 1e-9) == 1
    with pytest.raises(ValueError, match="no readable image in x"):
        images_for(ArraySource("x", np.zeros((2, 5, 4, 5), np.uint8)), 1)


def finished(folder: ShardFolder, source: Source, **options: Any) -> list[Any]:
    job = Job(source, source.captions(), shuffled(len(source), 0), 4, folder)
    return write_source(job, 1, **{"stop": lambda: False, "report": lambda count: None} | options)


def test_a_stop_keeps_what_is_finished_and_damage_is_mended(tmp_path: Path) -> None:
    draw_images(tmp_path / "data", 22)
    source = open_source(tmp_path / "data")
    write(source, tmp_path / "whole")
    folder = ShardFolder(tmp_path / "out")
    plan = Plan(data="x", split="all", seed=0, images=4, megabytes=None, names=names_checksum(source))
    folder.claim(plan)
    count = 0

    def counted(number: int) -> None:
        nonlocal count
        count = number

    with pytest.raises(Stopped):
        finished(folder, source, stop=lambda: count >= 3, report=counted)
    assert not list((tmp_path / "out").glob(".*.part"))
    kept = sorted((tmp_path / "out").glob("*.tar"))
    assert 3 <= len(kept) < 6
    times = [path.stat().st_mtime_ns for path in kept]
    with kept[1].open("r+b") as file:
        file.seek(600)
        file.write(b"damage")
    assert not folder.claim(plan)
    folder.finish(plan, finished(folder, source), source.classes)
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "whole").keys()
    for name, content in contents(tmp_path / "whole").items():
        if name.endswith(".tar"):
            assert (tmp_path / "out" / name).read_bytes() == content
    after = [path.stat().st_mtime_ns for path in kept]
    assert [before == now for before, now in zip(times, after, strict=True)][:3] == [True, False, True]


def test_what_a_disk_gives_back_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shard_writing._write

    def failing(aside: Path, *arguments: Any) -> Any:
        written = plain(aside, *arguments)
        with aside.open("r+b") as file:
            file.seek(530)
            file.write(b"x")
        return written

    monkeypatch.setattr(shard_writing, "_write", failing)
    with pytest.raises(ValueError, match=r"cannot write .*x.tar \(what was read back is not what was written\)"):
        write_shard(tmp_path / "x.tar", [make_sample("x", picture(0, side=64))])
    assert list(tmp_path.iterdir()) == []


class _Deadly(ArraySource):
    def read(self, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    assert multiprocessing.parent_process() is None
    source = _Deadly("x", np.zeros((8, 4, 4), np.uint8))
    (tmp_path / "out").mkdir()
    with pytest.raises(Failure, match="a process that writes shards was ended by the system"):
        finished(ShardFolder(tmp_path / "out"), source)


def test_the_index_says_what_there_is(tmp_path: Path) -> None:
    draw_images(tmp_path / "data", 6)
    write(open_source(tmp_path / "data"), tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "index.json").read_text())
    assert (facts["images"], facts["classes"], facts["plan"]["seed"]) == (6, ["cold", "warm"], 0)
    for row in facts["shards"]:
        content = (tmp_path / "out" / row["name"]).read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert sorted(contents(tmp_path / "out")) == [
        "index.json",
        "index.safetensors",
        "shard-000000.tar",
        "shard-000001.tar",
    ]
