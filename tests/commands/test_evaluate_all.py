"""`unmask evaluate partial`, its curve, and `all`, its table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from tiny_runs import draw_images, tiny_config
from unmask.cli import main
from unmask.commands.evaluate.everything import allowed_by
from unmask.commands.evaluate.partial import numbers_of_blocks
from unmask.pretrain import pretrain
from unmask.run_folder import RunFolder

DATA_FILES = Path(__file__).parents[1] / "data_files"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images and a run of MAE on them."""
    desk = tmp_path_factory.mktemp("desk")
    draw_images(desk / "photos" / "train", 18)
    draw_images(desk / "photos" / "val", 8)
    pretrain(tiny_config("mae", desk / "photos" / "train"), RunFolder(desk / "run"), Console(quiet=True))
    return desk


@pytest.fixture
def here(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(desk)
    return desk


@pytest.mark.parametrize(
    ("depth", "expected"), [(1, (0, 1)), (2, (0, 1, 2)), (4, (0, 1, 2, 4)), (12, (0, 1, 2, 4, 8, 12))]
)
def test_the_curve_has_a_point_at_every_power_of_two(depth: int, expected: tuple[int, ...]) -> None:
    assert numbers_of_blocks(depth) == expected


def test_partial_draws_a_curve_over_the_blocks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--epochs", "2", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--floors"]
    assert main(["evaluate", "partial", "run", "photos", *quick]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    folder = here / "run" / "partial-photos"
    rows = re.findall(r"^(\d) +(random start|pre-trained) +\d+\.\d +\d+\.\d to \d+\.\d$", out, flags=re.M)
    assert rows == [("0", "random start"), ("0", "pre-trained"), ("1", "random start"), ("1", "pre-trained")]
    assert out.splitlines()[-1] == "curve: run/partial-photos/curve.svg"
    svg = (folder / "curve.svg").read_text(encoding="utf-8")
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "last blocks trained" in svg
    tuned = {
        name: json.loads((folder / name / "config.json").read_text())["settings"]["tuned_blocks"]
        for name in ("last-0", "last-1", "last-0-random-start", "last-1-random-start")
    }
    assert tuned == {"last-0": 0, "last-1": 1, "last-0-random-start": 0, "last-1-random-start": 1}

    for blocks in (["2"], ["-1"]):
        assert main(["evaluate", "partial", "run", "photos", *quick, "--blocks", *blocks]) == 2
        assert "--blocks must lie between 0 and the encoder's 1 blocks" in capsys.readouterr().err


def test_all_runs_what_the_data_allow_and_writes_one_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "all", "run", "photos", "--workers", "0", "--device", "cpu"]
    assert main([*arguments, "--skip", "attentive", "finetune", "robustness"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line for line in out.splitlines() if line in ("knn", "linear", "fewshot", "unlabelled")] == [
        "knn",
        "linear",
        "fewshot",
        "unlabelled",
    ]
    table = (here / "run" / "all-photos.md").read_text(encoding="utf-8")
    assert table.startswith("# run on photos\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    assert cells[0] == ["evaluation", "network", "figure", "value", "95 % interval"]
    assert {row[0] for row in cells[2:]} >= {"k-nearest-neighbour accuracy", "Linear accuracy", "fewshot", "unlabelled"}
    assert {row[1] for row in cells[2:]} == {"raw pixels", "random start", "pre-trained"}
    knn = next(row for row in cells if row[0].startswith("k-nearest") and row[1] == "raw pixels")
    assert knn[2:4] == ["top-1 %", "100.0"]
    # The run's own page still stands with all that in its log.
    assert main(["report", "run"]) == 0


def test_one_that_cannot_run_does_not_end_the_rest(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imagecorruptions", None)
    arguments = ["evaluate", "all", "run", "photos", "--workers", "0", "--device", "cpu", "--only", "robustness", "knn"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "robustness: left out, " in out
    assert "k-nearest-neighbour accuracy" in out


def test_what_the_data_allow(here: Path) -> None:
    draw_images(here / "flat", classes=("",))
    (here / "several.csv").write_text(
        "image,labels,split\n"
        + "".join(f"photos/train/cold/{n:03d}.png,a;b,{'val' if n > 10 else 'train'}\n" for n in range(0, 18, 2))
    )
    assert allowed_by("several.csv") == ("linear", "finetune")
    assert allowed_by("flat") == ("unlabelled",)
    assert allowed_by(str(DATA_FILES / "coins")) == ("segment",)
    assert allowed_by(str(DATA_FILES / "trees")) == ("detect",)
    assert allowed_by("builtin:scenes") == ("segment", "detect")
    assert {"knn", "finetune", "unlabelled"} <= set(allowed_by("photos"))


def test_mistakes_are_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("run", "photos", "--only", "knnn"): "unknown protocol 'knnn'; choose among knn, linear, ",
        ("run", "flat", "--only", "knn"): "flat allows unlabelled, and none of these is asked for",
        ("run", "absent"): "absent does not exist",
        ("absent", "photos"): "there is no run folder or encoder file absent",
    }
    draw_images(here / "flat", classes=("",))
    for arguments, sentence in cases.items():
        assert main(["evaluate", "all", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"unmask: {sentence}")
        assert err.count("\n") == 1
