"""`unmask shard`: images to shards and back into a run; stopped, killed and refused as any command."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tiny_runs import CommandProcess, draw_images, quick_options, tiny_options
from tiny_shards import picture, served
from unmask.cli import main
from unmask.data.sources import labelled, open_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_images_in_shards_out(tmp_path: Path) -> None:
    """In a process of its own, as a user runs it."""
    data = draw_images(tmp_path / "data", 30)
    (data / "broken.jpg").write_bytes(b"no image")
    arguments = ["shard", "data", "out", "--shard-size", "8", "--workers", "2"]
    ended = CommandProcess(arguments, tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "data       data (31 images)",
        "out        out, 4 shards of 8 images",
        "bad files  1, left out and listed in out/bad_files.txt",
        "finished   30 images in 4 shards",
    ]
    assert (tmp_path / "out" / "bad_files.txt").read_text() == "data/broken.jpg\tit is not an image of a known format\n"
    before = contents(tmp_path / "out")
    ended = CommandProcess(arguments, tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "finished   30 images in 4 shards, all whole; nothing was left to do\n"
    assert contents(tmp_path / "out") == before


def test_a_run_reads_shards_from_a_server(tmp_path: Path) -> None:
    draw_images(tmp_path / "data", 24)
    assert main(["shard", str(tmp_path / "data"), str(tmp_path / "out"), "--shard-size", "8"]) == 0
    options = [*tiny_options("mae"), *quick_options(workers=2), "--method", "mae", "--out", str(tmp_path / "run")]
    with served(tmp_path / "out") as server:
        assert main(["pretrain", server.url, *options]) == 0
        assert [server.asked[f"shard-00000{number}.tar"] for number in range(3)] == [1, 1, 1]


def test_splits_become_folders_of_shards(tmp_path: Path) -> None:
    draw_images(tmp_path / "data" / "train", 8)
    draw_images(tmp_path / "data" / "val", 4)
    for split, name in (("train", "train"), ("test", "val")):
        out = str(tmp_path / "out" / name)
        assert main(["shard", str(tmp_path / "data"), out, "--split", split, "--shard-size", "1GB"]) == 0
    assert [len(part) for part in labelled(tmp_path / "out")] == [8, 4]


def test_a_stopped_and_a_killed_command_end_as_an_unbroken_one(tmp_path: Path) -> None:
    draw_images(tmp_path / "data", 120)
    arguments = ["shard", "data", "broken", "--shard-size", "2", "--workers", "2", "--seed", "5"]
    unbroken = [argument if argument != "broken" else "unbroken" for argument in arguments]
    assert CommandProcess(unbroken, tmp_path).end().code == 0
    out = tmp_path / "broken"

    process = CommandProcess(arguments, tmp_path)
    process.wait_until(lambda: len(list(out.glob("*.tar"))) >= 8)
    process.signal(signal.SIGINT)
    ended = process.end()
    assert (ended.code, ended.err) == (75, "")
    assert ended.out.splitlines()[-1] == "stopped by SIGINT, finished shards are saved; the same command goes on"
    assert not list(out.glob(".*.part"))
    assert not (out / "index.json").exists()

    stopped = len(list(out.glob("*.tar")))
    process = CommandProcess(arguments, tmp_path)
    process.wait_until(lambda: len(list(out.glob("*.tar"))) >= stopped + 8)
    process.signal(signal.SIGKILL)
    assert process.end().code == -signal.SIGKILL

    assert CommandProcess(arguments, tmp_path).end().code == 0
    assert contents(out) == contents(tmp_path / "unbroken")


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    draw_images(tmp_path / "data", 30, side=64)
    arguments = ["shard", "data", "out", "--shard-size", "10", "--workers", "2"]
    ended = CommandProcess(arguments, tmp_path, largest_file=50_000).end()
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("unmask: cannot write out/shard-00000")
    assert ended.err.endswith(" (file too large); what is finished stays, and the same command goes on\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".unmask-shard"]
    assert CommandProcess(arguments, tmp_path).end().code == 0
    assert len(open_source(tmp_path / "out")) == 30


@pytest.mark.parametrize("size", ["3", "0.0002MB"])
def test_a_stream_becomes_shards_once(tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    values = {
        "image": [{"bytes": b"bad" if number == 4 else picture(number), "path": None} for number in range(10)],
        "kind": [number % 2 for number in range(10)],
    }
    datasets.Dataset.from_dict(values, features=features).save_to_disk(str(tmp_path / "set"))
    arguments = ["shard", f"hf-stream:{tmp_path}/set", str(tmp_path / "out"), "--shard-size", size, "--keep-order"]
    assert main(arguments) == 0
    source = open_source(tmp_path / "out")
    assert [source.read(index) for index in range(9)] == [picture(number) for number in range(10) if number != 4]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1, 1, 0, 1, 0, 1]
    assert source.classes == ("a", "b")
    assert source.shards is not None
    assert len(source.shards) > 2
    assert (tmp_path / "out" / "bad_files.txt").read_text().endswith("set/4\tit is not an image of a known format\n")
    capsys.readouterr()
    assert main(arguments) == 0
    assert "all whole; nothing was left to do" in capsys.readouterr().out
    assert main([*arguments, "--split", "train"]) == 2
    assert "a stream has no --split; name its part in brackets: hf-stream:" in capsys.readouterr().err


def test_a_stopped_stream_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image()})
    values = {"image": [{"bytes": picture(number), "path": None} for number in range(80)]}
    datasets.Dataset.from_dict(values, features=features).save_to_disk(str(tmp_path / "set"))
    arguments = ["shard", "hf-stream:set", "out", "--shard-size", "2", "--seed", "3"]
    process = CommandProcess(arguments, tmp_path)
    process.wait_until(lambda: len(list((tmp_path / "out").glob("*.tar"))) >= 5)
    process.signal(signal.SIGTERM)
    assert process.end().code == 75
    assert CommandProcess(arguments, tmp_path).end().code == 0
    monkeypatch.chdir(tmp_path)
    arguments[2] = "unbroken"
    assert main(arguments) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_what_lies_there_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = draw_images(tmp_path / "data", 12), tmp_path / "out"
    arguments = ["shard", str(data), str(out), "--shard-size", "5"]

    def refused(*more: str) -> str:
        before = contents(out)
        capsys.readouterr()
        assert main([*arguments, *more]) == 2
        assert contents(out) == before
        return capsys.readouterr().err.removeprefix("unmask: ").rstrip("\n")

    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    assert refused() == f"{out} exists and holds no shards of this command; choose another OUT"
    (out / "thesis.tex").unlink()
    assert main(arguments) == 0
    assert refused("--seed", "1") == f"{out} holds other shards (their seed is 0, not 1); choose another OUT"
    assert refused("--keep-order") == f"{out} holds other shards (their seed is 0, not None); choose another OUT"
    (data / "warm" / "new.png").write_bytes(picture(1))
    assert refused() == f"{out} holds other shards (their images are others); choose another OUT"
    (data / "warm" / "new.png").unlink()
    with (out / "shard-000001.tar").open("ab") as file:
        file.write(b"x")
    assert refused() == f"{out}/shard-000001.tar is missing or damaged; remove {out} and write the shards again"


def test_nothing_readable_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jpg").write_bytes(b"no image")
    assert main(["shard", str(tmp_path / "data"), str(tmp_path / "out"), "--shard-size", "5"]) == 2
    assert capsys.readouterr().err == (
        f"unmask: no readable image in {tmp_path}/data, for example {tmp_path}/data/a.jpg: "
        "it is not an image of a known format\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data"], "unmask shard needs OUT, before the options; see unmask shard --help"),
        (["nowhere", "out"], "nowhere does not exist"),
        (["data", "data/out"], "data/out lies inside data: choose an OUT outside of the images"),
        (["data", "data"], "data lies inside data: choose an OUT outside of the images"),
        (["data", "file"], "file exists and holds no shards of this command; choose another OUT"),
        (
            ["data", "file/out"],
            "cannot write file/out (not a directory); what is finished stays, and the same command ",
        ),
        (["data", "out", "--workers", "0"], "--workers must be at least 1, got 0; see unmask shard --help"),
        (
            ["data", "out", "--seed", "-1"],
            "--seed must be a whole number from 0 to 2^63 - 1, got -1; see unmask shard ",
        ),
        *(
            (
                ["data", "out", "--shard-size", size],
                f"--shard-size takes a number of images (1000) or of bytes (200MB, 1GB), not '{size}'; see ",
            )
            for size in ("0", "1.5", "0MB", "many", "10TB", "-3")
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_images(Path("data"), 2)
    Path("file").write_text("mine")
    assert main(["shard", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"unmask: {sentence}")
    assert said.count("\n") == 1
    assert not Path("out").exists()
