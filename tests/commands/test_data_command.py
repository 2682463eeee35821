"""`unmask data DATA`, as a user runs it: words, JSON, a page, a list, and what pre-training would really choose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tiny_runs import draw_images
from unmask.cli import main
from unmask.commands.pretrain import describe, read, resolve
from unmask.run_folder import RunFolder


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of which two are none, and five without a class."""
    desk = tmp_path_factory.mktemp("desk")
    data = draw_images(desk / "data", 28)
    (data / "cold" / "bad one.jpg").write_bytes(b"no image")
    (data / "warm" / "[red]empty.png").write_bytes(b"")
    draw_images(desk / "flat", 5, classes=("",))
    (desk / "broken").mkdir()
    (desk / "broken" / "a.jpg").write_bytes(b"no image")
    return desk


@pytest.fixture
def here(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(desk)
    return desk


def test_words_a_page_and_a_list(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").symlink_to(desk / "data")
    monkeypatch.chdir(tmp_path)
    arguments = ["data", "data", "--out", "pages/p.html", "--bad-files", "bad.txt", "--workers", "1", "--sample", "all"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "data           data"
    assert "looked at      all files were read and decoded" in lines
    assert "bad files      2 of 30" in lines
    assert "               data/warm/[red]empty.png: the file is empty" in lines
    assert "unmask pretrain data would choose" in lines
    assert "- 2 files cannot be used; a run passes over such files and names them." in lines
    assert lines[-2:] == ["page: pages/p.html", "bad files: bad.txt"]
    assert sorted((tmp_path / "bad.txt").read_text().splitlines()) == [
        "data/cold/bad one.jpg\tit is not an image of a known format",
        "data/warm/[red]empty.png\tthe file is empty",
    ]
    assert (tmp_path / "pages" / "p.html").read_text(encoding="utf8").startswith("<!DOCTYPE html>")
    assert not (tmp_path / "runs").exists()


def test_the_defaults_are_those_of_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "data", "--json", "--workers", "0"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    told = json.loads(out)
    command, base = read(["data"])
    config, notes = resolve(command, base, RunFolder(here / "runs" / "conmim-data"))
    encoder, training = config.settings.encoder, config.training
    assert told["pretrain"] == {
        "method": "conmim",
        "encoder": encoder.name,
        "image_size": [encoder.image_height, encoder.image_width],
        "patch_size": encoder.patch_size,
        "channels": 3,
        "mean": list(config.settings.mean),
        "std": list(config.settings.std),
        "pixel_range": None,
        "batch_size": training.batch_size,
        "epochs": training.epochs,
        "steps_per_epoch": 30 // training.batch_size,
        "notes": notes,
    }
    assert told["images"]["pretraining"] == 30
    assert set(told["bad_files"].values()) == {"it is not an image of a known format", "the file is empty"}
    assert any(sentence.startswith("30 images are very few") for sentence in told["warnings"])


def test_what_pre_training_says_is_what_data_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, base = read(["data"])
    folder = RunFolder(Path("runs") / "conmim-data")
    config, notes = resolve(command, base, folder)
    describe(config, folder, notes, Console(soft_wrap=True))
    said = capsys.readouterr().out
    assert main(["data", "data", "--workers", "0"]) == 0
    told = capsys.readouterr().out
    for name in ("encoder", "training", "learning rate"):
        line = next(line for line in said.splitlines() if line.startswith(name))
        assert line.removeprefix(name).strip() in told
    for note in notes[1:]:
        assert note in told


def test_a_sample_of_the_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "flat", "--files", "3", "--sample", "2", "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "3 of 5 files were read, 2 of 5 decoded" in out
    assert "none: no folder a class, no labels" in out


def test_images_that_pre_training_refuses(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run would begin with another one's folder in the way; the facts are told all the same."""
    run = here / "runs" / "conmim-flat"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{")
    assert main(["data", "flat", "--workers", "0"]) == 0
    told = capsys.readouterr().out
    assert "- unmask pretrain would refuse: " in told
    assert "all 32 x 32 pixels" in told


def test_wide_values_are_told_with_their_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for number in range(8):
        values_HW = generator.integers(500, 3000, (40, 40)).astype(np.uint16)
        Image.fromarray(values_HW).save(tmp_path / f"{number}.tif")
    assert main(["data", str(tmp_path), "--workers", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    low, high = (told["pretrain"]["pixel_range"][end][0] for end in ("low", "high"))
    assert (500 <= low <= 510, 2990 <= high <= 3000) == (True, True)
    assert told["dtypes"] == {"uint16": 8}
    assert 0.4 < told["channels"]["1"]["mean"][0] < 0.6


def test_a_disk_that_refuses_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--out", "--bad-files"):
        assert main(["data", "flat", "--workers", "0", option, "data/captions.csv/x.html"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("unmask: cannot write data/captions.csv/x.html (file exists)")
        assert err.count("\n") == 1


REFUSED = [
    ("data", "unmask data needs DATA, before the options"),
    ("data gone", "gone does not exist"),
    ("data broken", "no readable image in broken, for example broken/a.jpg: it is not an image of a known format"),
    ("data data --sample 0", "--sample must be at least 1, or all; got 0"),
    ("data data --sample most", "--sample takes a whole number or all, not 'most'"),
    ("data data --files 0", "--files must be at least 1, or all; got 0"),
    ("data data --workers -1", "--workers must be 0 or more, got -1"),
    ("data data --out page.png", "--out writes a page: page.png must end in .html"),
    ("data data --smple 3", "unknown option --smple; did you mean --sample?"),
    ("data hf-stream:photos", "hf-stream:photos can only be read from its beginning: make shards of it first"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED, ids=[line for line, _ in REFUSED])
def test_refusals(here: Path, capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    before = sorted(path.name for path in here.rglob("*"))
    workers = [] if "--workers" in line else ["--workers", "0"]
    assert main([*line.split(), *workers]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"unmask: {said}")
    assert err.count("\n") == 1
    assert sorted(path.name for path in here.rglob("*")) == before
