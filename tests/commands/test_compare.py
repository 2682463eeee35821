"""`unmask compare`, as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_runs import draw_images
from unmask.cli import main

TINY = ["--epochs", "1", "--batch-size", "32", "--width", "32", "--depth", "2", "--heads", "2", "--workers", "0"]
Compare = Callable[..., int]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images with a validation half."""
    folder = tmp_path_factory.mktemp("data")
    for half in ("train", "val"):
        draw_images(folder / half, 64)
    return folder


@pytest.fixture
def compare(data: Path) -> Compare:
    def run(folder: Path, *things: str, more: tuple[str, ...] = ()) -> int:
        return main(["compare", *things, "--on", str(data), "--out", str(folder), *TINY, *more])

    return run


def test_methods_start_alike_and_results_are_kept(
    compare: Compare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, "mae", "simclr") == 0
    text = capsys.readouterr().out
    for name in ("raw pixels", "random start", "mae", "simclr"):
        assert name in text
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == ["raw pixels", "random start", "mae", "simclr"]
    assert [record["same_start"] for record in records] == [None, None, True, True]
    for record in records:
        for score in record["scores"].values():
            assert score["interval"][0] <= score["top1"] <= score["interval"][1]
    table = (tmp_path / "comparison.md").read_text()
    assert table.count("\n|") >= 5
    assert (tmp_path / "comparison.svg").read_text().startswith("<svg")

    # Again, with a finished run of the comparison as one more encoder: nothing is computed twice.
    before = (tmp_path / "results.jsonl").read_text()
    assert compare(tmp_path, "mae", "simclr", str(tmp_path / "mae")) == 0
    after = (tmp_path / "results.jsonl").read_text()
    assert after.startswith(before)
    again = json.loads(after.splitlines()[-1])
    assert again["name"] == str(tmp_path / "mae")
    assert again["scores"] == records[2]["scores"]

    # Another budget is another comparison.
    assert compare(tmp_path, "mae", more=("--lr", "0.1")) == 2
    assert "is of another comparison; choose another --out" in capsys.readouterr().err


def test_what_does_not_exist_is_refused_before_anything_runs(
    compare: Compare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path / "out", "mae", "no/such/run") == 2
    assert capsys.readouterr().err == "unmask: there is no run folder or encoder file no/such/run\n"
    assert not (tmp_path / "out").exists()


def test_what_lacks_something_is_left_out_with_its_reason(
    compare: Compare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, "beit") == 0
    assert "beit: left out, beit needs --tokenizer" in capsys.readouterr().out
    assert "left out: beit needs --tokenizer" in (tmp_path / "comparison.md").read_text()


def test_nothing_to_compare_is_refused(compare: Compare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1
