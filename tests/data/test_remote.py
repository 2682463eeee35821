"""Shards behind URLs, of a real server that is as unreliable as networks are."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from torch.utils.data import DataLoader

from tiny_shards import Behaviour, Numbers, colour_of, served, write_shards
from unmask.data.batch import CropConfig
from unmask.data.dataset import CropDataset
from unmask.data.remote import RemoteCache, RemoteConfig, check_access, is_url, shown
from unmask.data.shard_folder import Plan, ShardFolder
from unmask.data.sharding import Job, shuffled, write_source
from unmask.data.shards import open_shards
from unmask.data.sources import Source, open_source

pytest.importorskip("aiohttp")
QUICK = RemoteConfig(attempts=3, first_wait=0.01, stall=0.3)
NAMES = [f"shard-{number:06d}.tar" for number in range(3)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unmask" / "shards"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of four pictures each, with an index."""
    folder = tmp_path_factory.mktemp("indexed")
    write_shards(folder / "from")
    source = open_source(folder / "from")
    plan = Plan(data="", split="all", seed=None, images=4, megabytes=None, names="")
    out = ShardFolder(folder / "out")
    out.claim(plan)
    job = Job(source, source.captions(), shuffled(len(source), None), 4, out)
    out.finish(plan, write_source(job, 1, stop=lambda: False, report=lambda count: None), source.classes)
    return folder / "out"


@pytest.fixture
def server(indexed: Path) -> Iterator[Behaviour]:
    with served(indexed) as behaviour:
        yield behaviour


def numbers(source: Source) -> list[int]:
    return [colour_of(source.read(index)) for index in range(len(source))]


@pytest.mark.parametrize("spelling", ["", "index.json", "index.json?key=secret"])
def test_an_index_behind_a_url(server: Behaviour, spelling: str) -> None:
    source = open_source(server.url + spelling)
    assert server.asked == {"index.json": 1, "index.safetensors": 1}
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1] * 6
    assert source.captions() == tuple((f"number {number}",) for number in range(12))
    assert source.shards is not None
    assert source.shards.tolist() == [0, 4, 8]
    assert source.path(5) == f"{server.url}shard-000001.tar/000005.png"
    assert "secret" not in source.name
    assert colour_of(source.read(5)) == 5
    assert server.asked["shard-000001.tar"] == 1
    assert numbers(source) == numbers(open_source(server.url + spelling)) == list(range(12))
    assert [server.asked[name] for name in NAMES] == [1, 1, 1]


def test_a_pattern_without_an_index_is_listed_once(server: Behaviour) -> None:
    spec = f"{server.url}shard-{{000000..000002}}.tar"
    source = open_source(spec)
    assert numbers(source) == list(range(12))
    assert source.labels is not None
    again = open_source(spec + "?signature=other")
    assert numbers(again) == list(range(12))
    assert server.asked == dict.fromkeys(NAMES, 1)


def test_a_listed_shard_that_changes_is_noticed_when_it_is_fetched_again(
    indexed: Path, tmp_path: Path, own_cache: Path
) -> None:
    content = (indexed / NAMES[0]).read_bytes()
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "x.tar").write_bytes(content)
    with served(tmp_path / "served") as server:
        open_shards(server.url + "x.tar", "all", QUICK)
        (tmp_path / "served" / "x.tar").write_bytes(content[:-1] + b"\1")
        for file in own_cache.iterdir():
            file.unlink()
        with pytest.raises(OSError, match="could not be fetched in 3 attempts: its checksum is not the one expected"):
            open_shards(server.url + "x.tar", "all", QUICK).read(0)


def test_many_workers_fetch_each_shard_once(server: Behaviour, own_cache: Path) -> None:
    source = open_source(server.url)
    assert colour_of(source.read(0)) == 0  # what is open here must not harm the workers that are forked now
    loader = DataLoader(Numbers(source), batch_size=2, num_workers=2)
    assert sorted(number for batch in loader for number in batch.tolist()) == list(range(12))
    assert [server.asked[name] for name in NAMES] == [1, 1, 1]
    assert sorted(file.suffix for file in own_cache.iterdir()) == [".data"] * 3


def test_a_server_that_fails_twice(server: Behaviour) -> None:
    source = open_shards(server.url, "all", QUICK)
    server.failures[NAMES[0]] = 2
    assert colour_of(source.read(1)) == 1
    assert server.asked[NAMES[0]] == 3


def test_an_index_is_asked_for_patiently_too(server: Behaviour) -> None:
    server.failures["index.json"] = server.failures["index.safetensors"] = 2
    assert len(open_shards(server.url, "all", QUICK)) == 12


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        ("failures", "in 3 attempts: 503"),
        ("stalling", "in 3 attempts: no byte came for 0.3 seconds"),
        ("cut", "in 3 attempts: Response payload is not completed"),
        ("gone", ": it is not there"),
    ],
)
def test_a_shard_that_cannot_be_had_is_lost_for_a_while(
    server: Behaviour, trouble: str, cause: str, own_cache: Path
) -> None:
    source = open_shards(server.url, "all", QUICK)
    if trouble == "failures":
        server.failures[NAMES[1]] = 99
    else:
        getattr(server, trouble).add(NAMES[1])
    sentence = f"{server.url}{NAMES[1]} could not be fetched{' ' if cause[0] == 'i' else ''}{cause}"
    for index in (4, 5, 4, 7):
        with pytest.raises(OSError, match=sentence.replace("?", ".")):
            source.read(index)
    assert server.asked[NAMES[1]] == (1 if trouble == "gone" else 3)
    assert numbers(source.subset([0, 8])) == [0, 8]
    # A new run begins with new hope; and so does this one, after a while.
    server.gone.clear()
    server.stalling.clear()
    server.cut.clear()
    server.failures.clear()
    (mark,) = own_cache.glob("*.lost")
    os.utime(mark, (1e9, 1e9))
    assert colour_of(source.read(4)) == 4
    mark.touch()
    open_shards(server.url, "all", QUICK)
    assert not mark.exists()


def test_images_of_a_lost_shard_are_replaced_and_named(server: Behaviour) -> None:
    source = open_shards(server.url, "all", QUICK)
    server.gone.add(NAMES[1])
    crops = (CropConfig(count=1, height=8, width=8, scale=(1.0, 1.0), ratio=(1.0, 1.0)),)
    samples = [CropDataset(source, crops, channels=3, seed=0)[0, index] for index in range(12)]
    assert not any(sample.empty for sample in samples)
    bad = {note.path: note.reason for sample in samples for note in sample.bad}
    assert set(bad) == {f"{server.url}{NAMES[1]}/00000{number}.png" for number in range(4, 8)}
    assert set(bad.values()) == {f"{server.url}{NAMES[1]} could not be fetched: it is not there"}
    assert server.asked[NAMES[1]] == 1


def test_the_cache_keeps_what_was_used_last(server: Behaviour, indexed: Path, own_cache: Path) -> None:
    size = (indexed / NAMES[0]).stat().st_size
    source = open_shards(server.url, "all", replace(QUICK, cache_bytes=2 * size))

    def grow_old() -> None:
        for age, file in enumerate(sorted(own_cache.glob("*.data"), key=lambda file: file.stat().st_mtime)):
            os.utime(file, (time.time() - 1000 + age,) * 2)

    source.read(0)
    source.read(4)
    grow_old()
    source.read(0)
    source.read(8)
    assert sum(file.stat().st_size for file in own_cache.iterdir()) <= 2 * size
    assert [server.asked[name] for name in NAMES] == [1, 1, 1]
    grow_old()
    source.read(0)
    assert [server.asked[name] for name in NAMES] == [1, 1, 1]
    source.read(4)
    assert [server.asked[name] for name in NAMES] == [1, 2, 1]


def test_what_is_being_read_is_not_removed(server: Behaviour, own_cache: Path) -> None:
    cache = RemoteCache(replace(QUICK, cache_bytes=1))
    with cache.opened(server.url + NAMES[0]) as file:
        with cache.opened(server.url + NAMES[1]):
            assert len(list(own_cache.glob("*.data"))) == 2
        with cache.opened(server.url + NAMES[2]):
            assert len(list(own_cache.glob("*.data"))) == 2
        assert Path(file.name).exists()


def test_what_killed_processes_left_is_cleared_away(server: Behaviour, own_cache: Path) -> None:
    cache = RemoteCache(QUICK)
    with cache.opened(server.url + NAMES[0]) as file:
        place = Path(file.name)
    place.unlink()
    own = place.with_name(f"{place.name}.1-1.part")
    foreign = own_cache / "other.data.1-1.part"
    for rest in (own, foreign):
        rest.write_bytes(b"half")
    place.with_suffix(".lock").touch()
    with cache.opened(server.url + NAMES[0]):
        assert not own.exists()
        assert foreign.exists()
    os.utime(foreign, (1e9, 1e9))
    with cache.opened(server.url + NAMES[1]):
        assert sorted(file.suffix for file in own_cache.iterdir()) == [".data", ".data"]


def _read_all(url: str, cache: str) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    assert numbers(open_source(url)) == list(range(12))


def test_processes_that_know_nothing_of_each_other_share_the_cache(server: Behaviour, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read_all, args=(server.url, str(tmp_path / "cache"))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [server.asked[name] for name in NAMES] == [1, 1, 1]


def test_a_cache_that_cannot_be_written_is_said(server: Behaviour, own_cache: Path) -> None:
    source = open_shards(server.url, "all", QUICK)
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(OSError, match=f"shard-000000.tar could not be kept in {own_cache}: not a directory"):
        source.read(0)


def test_any_kind_of_url_of_fsspec(indexed: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(indexed) + "/", "/set/", recursive=True)
    try:
        assert numbers(open_source("memory://set/index.json")) == list(range(12))
    finally:
        memory.rm("/set", recursive=True)


def test_a_local_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ValueError, match=f"^http://127.0.0.1:{port}/index.json could not be fetched in 3 attempts: "):
        open_shards(f"http://user:word@127.0.0.1:{port}/?key=secret", "all", QUICK)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("images", "{url}images/index.json could not be fetched: it is not there"),
        ("nothing.json?key=secret", "{url}nothing.json could not be fetched: it is not there"),
        ("{a,b}/{0..1}.tar", "{url}a/0.tar could not be fetched: it is not there"),
        ("index.safetensors/x.json", "{url}index.safetensors/x.json could not be fetched: it is not there"),
    ],
)
def test_urls_that_lead_nowhere(server: Behaviour, spec: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + sentence.replace("{url}", server.url)):
        open_shards(server.url + spec, "all", QUICK)


def test_an_index_that_is_none(indexed: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes((indexed / "index.json").read_bytes())
    (tmp_path / "index.safetensors").write_bytes(b"something else")
    (tmp_path / "other.json").write_text("[]")
    with served(tmp_path) as server:
        with pytest.raises(ValueError, match=r"index.json does not belong to the index.safetensors beside it"):
            open_shards(server.url, "all", QUICK)
        with pytest.raises(ValueError, match=r"other.json is no index of unmask shard"):
            open_shards(server.url + "other.json", "all", QUICK)


def test_libraries_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ValueError, match=r"https://x/y.tar needs the library aiohttp, which is missing: pip inst"):
        check_access("https://x/y.tar")
    with pytest.raises(ValueError, match=r"nonsense://x/y.tar cannot be read: Protocol not known: nonsense"):
        check_access("nonsense://x/y.tar")


def test_the_room_of_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RemoteConfig.from_environment().cache_bytes == 50 * 10**9
    monkeypatch.setenv("UNMASK_CACHE_GB", "1.5")
    assert RemoteConfig.from_environment().cache_bytes == 1_500_000_000
    for wrong in ("much", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("UNMASK_CACHE_GB", wrong)
        with pytest.raises(ValueError, match=f"UNMASK_CACHE_GB must be a number above 0, not '{wrong}'"):
            open_source("http://127.0.0.1:1/index.json")


def test_what_is_a_url() -> None:
    assert all(map(is_url, ("http://x", "s3://bucket/x", "hdfs+x://y")))
    assert not any(map(is_url, ("a/b", "C:\\x", "://x", "hf:x", "x:/y")))
    assert shown("https://me:word@host/a@b.tar?key=1") == "https://host/a@b.tar"
