"""`unmask embed`, `search`, `duplicates`: images to a file to answers; killed, stopped and refused as any command."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from tiny_runs import CommandProcess, draw_images
from tiny_supervised import write_encoder
from unmask.cli import main

SMALL = ["--batch-size", "4", "--part-size", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images, of which two are the same and one is none, an encoder, another one, and features of all of them."""
    desk = tmp_path_factory.mktemp("desk")
    data = draw_images(desk / "data", 160)
    shutil.copy(data / "cold" / "000.png", data / "warm" / "copy.png")
    (data / "cold" / "broken.jpg").write_bytes(b"no image")
    shutil.copytree(data / "warm", desk / "more" / "warm")
    write_encoder(desk / "encoder.safetensors")
    write_encoder(desk / "other.safetensors", "sincos")
    return desk


@pytest.fixture(scope="module")
def embedded(desk: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        for out, options in (("f.parquet", []), ("maps.npy", ["--output", "dense"]), ("g.npy", ["--split", "test"])):
            assert main(["embed", "encoder.safetensors", "data", "-o", out, "--workers", "0", *SMALL, *options]) == 0
    return desk


@pytest.fixture
def here(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(embedded)
    return embedded


def test_killed_and_stopped_the_end_is_the_same_to_the_bit(desk: Path, tmp_path: Path) -> None:
    """In processes of their own, as a user runs it."""
    arguments = ["embed", "encoder.safetensors", "data", "-o", "f.parquet", "--workers", "1", *SMALL]
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        for name in ("data", "encoder.safetensors"):
            (folder / name).symlink_to(desk / name)
    ended = CommandProcess(arguments, one).end()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[:3] == [
        "encoder    encoder.safetensors, mean of block 2: 48 numbers",
        "data       data (162 images)",
        "bad files  1, left out and listed in f.parquet.bad_files.txt",
    ]
    assert ended.out.splitlines()[3].startswith("finished   161 images in f.parquet, 0.")
    parts = other / ".f.parquet.parts"
    for number, part in ((signal.SIGKILL, 3), (signal.SIGTERM, 8)):
        process = CommandProcess(arguments, other)
        process.wait_until(lambda part=part: (parts / f"{part:06d}.safetensors").exists())  # type: ignore[misc]
        process.signal(number)
        ended = process.end()
        assert not (other / "f.parquet").exists()
        assert ended.code == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert ended.out.splitlines()[-1] == "stopped by SIGTERM, finished parts are saved; the same command goes on"
    ended = CommandProcess(arguments, other).end()
    assert (ended.code, ended.err) == (0, "")
    for name in ("f.parquet", "f.parquet.bad_files.txt"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (
        one / "f.parquet.bad_files.txt"
    ).read_text() == "data/cold/broken.jpg\tit is not an image of a known format\n"
    assert not parts.exists()


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(desk: Path, tmp_path: Path) -> None:
    for name in ("data", "encoder.safetensors"):
        (tmp_path / name).symlink_to(desk / name)
    arguments = ["embed", "encoder.safetensors", "data", "-o", "f.npy", "--workers", "0", *SMALL]
    ended = CommandProcess(arguments, tmp_path, largest_file=9000).end()
    assert ended.code == 2
    assert ended.err == (
        "unmask: cannot write f.npy (file too large); what is finished stays, and the same command goes on\n"
    )
    assert not (tmp_path / "f.npy").exists()
    ended = CommandProcess(arguments, tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_search_finds_the_image_itself_and_its_copy(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    queries = ["data/cold/000.png", "data/warm/003.png"]
    assert main(["search", "f.parquet", *queries, "--top", "3", "--device", "cpu", "--sheet", "s.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        queries[0],
        "   1  1.0000  data/cold/000.png  (cold)",
        "   2  1.0000  data/warm/copy.png  (warm)",
    ]
    assert lines[4:6] == [queries[1], "   1  1.0000  data/warm/003.png  (warm)"]
    assert lines[8] == "sheet s.png"
    with Image.open("s.png") as sheet:
        assert sheet.width > 4 * 160
        assert sheet.height > 2 * 160
    assert main(["search", "f.parquet", "g.npy", queries[1], "--top", "200", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["query"] == queries[1]
    assert {hit["file"] for hit in found["hits"]} == {"f.parquet", "g.npy"}
    first = found["hits"][0]
    assert first == {**first, "path": queries[1], "label": 1, "class": "warm", "similarity": 1.0}
    assert [hit["similarity"] for hit in found["hits"]] == sorted(
        (hit["similarity"] for hit in found["hits"]), reverse=True
    )


def test_duplicates_within_and_over_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "encoder.safetensors", "more", "-o", "more.npy", "--workers", "0", *SMALL]) == 0
    capsys.readouterr()
    assert main(["duplicates", "f.parquet", "--threshold", "1", "--sheet", "sheets/d.png"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 images",
        "      1.0000  data/cold/000.png  (cold)",
        "      1.0000  data/warm/copy.png  (warm)",
        "1 groups hold 2 of 161 images (cosine 1 or more)",
        "sheet sheets/d.png",
    ]
    with Image.open("sheets/d.png") as sheet:
        assert sheet.format == "PNG"
    assert main(["duplicates", "f.parquet", "more.npy", "--threshold", "0.999999", "--json"]) == 0
    groups = [json.loads(line)["images"] for line in capsys.readouterr().out.splitlines()]
    assert [image["path"] for image in groups[0]] == ["data/cold/000.png", "data/warm/copy.png", "more/warm/copy.png"]
    assert len(groups) == 81
    assert {image["similarity"] for group in groups for image in group} == {1.0}


def test_headers_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["embed", "encoder.safetensors", "data", "-o", "f.parquet", "--workers", "0", *SMALL]
    assert main(again) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("MB; nothing was left to do")
    assert main([*again, "--json"]) == 0
    header = json.loads(capsys.readouterr().out)
    assert (header["images"], header["bad_files"], header["encoder"]) == (161, 1, "encoder.safetensors")
    assert header["plan"]["recipe"]["output"] == "mean"


REFUSED = [
    ("embed gone data -o x.npy", "there is no run folder or encoder file gone"),
    ("embed encoder.safetensors gone -o x.npy", "gone does not exist"),
    (
        "embed encoder.safetensors data -o x.csv",
        "x.csv must end in .parquet, .npy, .safetensors: that is the kind of file",
    ),
    ("embed encoder.safetensors data -o x.npy --block 7", "block 7 is not there: the encoder's blocks are 0 to 2"),
    ("embed encoder.safetensors data -o x.npy --batch-size 0", "--batch-size and --part-size must be at least 1"),
    ("embed encoder.safetensors data -o x.npy --image-size 9", "image height 9 is not divisible by the patch size 8"),
    ("embed encoder.safetensors data -o gone/x.npy --max-bad-share 0", "1 of the 128 files"),
    (
        "embed encoder.safetensors data -o f.parquet --output class",
        "f.parquet exists and holds other features (output mean, not class); choose another --out",
    ),
    ("search f.parquet", "there is nothing to search for: give one image or more behind the file of features"),
    ("search data/cold/000.png", "search needs a file of features"),
    ("search gone.npy data/cold/000.png", "there is no file of features gone.npy"),
    ("search maps.npy data/cold/000.png", "maps.npy holds maps, and one feature an image is needed"),
    (
        "search f.parquet data/cold/broken.jpg",
        "data/cold/broken.jpg cannot be searched for: it is not an image of a known format",
    ),
    ("search f.parquet gone.png", "gone.png cannot be searched for: No such file or directory"),
    ("search encoder.safetensors data/cold/000.png", "encoder.safetensors holds no features of unmask embed"),
    (
        "search f.parquet data/cold/000.png --encoder other.safetensors",
        "other.safetensors is not the encoder that made f.parquet; features of two encoders do not compare",
    ),
    ("search f.parquet data/cold/000.png --data more --sheet x.png", "more does not hold the images that f.parquet"),
    ("duplicates f.parquet maps.npy", "maps.npy holds maps"),
    ("duplicates f.parquet --threshold 2", "--threshold must lie in (0, 1], got 2.0"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED, ids=[line for line, _ in REFUSED])
def test_refusals(here: Path, capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    words = line.split()
    options = ["--device", "cpu"] if words[0] != "duplicates" else []
    before = sorted(path.name for path in here.rglob("*"))
    capsys.readouterr()
    assert main([*words, *options, *(["--workers", "0"] if words[0] == "embed" else [])]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"unmask: {said}")
    assert err.count("\n") == 1
    assert "Traceback" not in out
    assert sorted(path.name for path in here.rglob("*")) == before


def test_an_encoder_that_moved_or_changed(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = ["data/cold/000.png", "--device", "cpu", "--top", "1"]
    moved = tmp_path / "moved.safetensors"
    shutil.move("encoder.safetensors", moved)
    try:
        assert main(["search", "f.parquet", *query]) == 2
        assert capsys.readouterr().err == (
            "unmask: the encoder of f.parquet cannot be opened any more (there is no run folder or encoder file "
            "encoder.safetensors): give --encoder\n"
        )
        shutil.copy("other.safetensors", "encoder.safetensors")
        assert main(["search", "f.parquet", *query]) == 2
        said = (
            "unmask: encoder.safetensors is not the encoder that made f.parquet; it has changed since: give --encoder\n"
        )
        assert capsys.readouterr().err == said
        assert main(["search", "f.parquet", *query, "--encoder", str(moved)]) == 0
    finally:
        shutil.move(moved, "encoder.safetensors")


def test_without_pyarrow(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    capsys.readouterr()
    for line in (["embed", "encoder.safetensors", "data", "-o", "x.parquet"], ["duplicates", "f.parquet"]):
        assert main(line) == 2
        assert capsys.readouterr().err == (
            "unmask: parquet files need the library pyarrow, which is missing: pip install 'unmask[parquet]', or write "
            ".npy or .safetensors\n"
        )
    assert main(["duplicates", "g.npy"]) == 0


def test_damaged_files(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = io.BytesIO(Path("f.parquet").read_bytes()).getvalue()
    broken = tmp_path / "broken.parquet"
    for cut in (content[:-200], content[: len(content) // 2], b""):
        broken.write_bytes(cut)
        assert main(["duplicates", str(broken)]) == 2
        assert capsys.readouterr().err == f"unmask: {broken} is not a readable parquet file\n"
    shutil.copy("g.npy", tmp_path / "g.npy")
    assert main(["duplicates", str(tmp_path / "g.npy")]) == 2
    assert "holds no features of unmask embed (its header is missing)" in capsys.readouterr().err
    shutil.copy("g.npy.json", tmp_path / "g.npy.json")
    assert main(["duplicates", str(tmp_path / "g.npy")]) == 2
    assert "g.npy.csv is missing, which names the images of" in capsys.readouterr().err
    (tmp_path / "g.npy.csv").write_text("index,path\n")
    assert main(["duplicates", str(tmp_path / "g.npy"), "--threshold", "0.1"]) == 2
    assert "g.npy.csv is damaged" in capsys.readouterr().err
    values = json.loads((tmp_path / "g.npy.json").read_text())
    for wrong in ({"images": 3}, {"plan": 4}, {"shape": None}, {"format": 2}, {"odd": 1}):
        (tmp_path / "g.npy.json").write_text(json.dumps(values | wrong))
        assert main(["duplicates", str(tmp_path / "g.npy")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
