"""`--batch-size auto`: what fits into memory is written down, and stays as it is for the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import unmask.commands.pretrain
from tiny_runs import CommandProcess, draw_images, quick_options, read_records, tiny_config, tiny_options
from unmask.cli import main
from unmask.config import save_config
from unmask.training.checkpoint import checkpoint_path

AUTO = ["--batch-size", "auto", "--workers", "0", "--log-every", "1", "--device", "cpu"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "data", 40)


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Says how many images fit; None: nobody may ask."""

    def fit(images: int | None) -> None:
        def found(*given: Any, most: int) -> int:
            assert images is not None, "a run that has begun was measured anew"
            return min(images, most)

        monkeypatch.setattr(unmask.commands.pretrain, "largest_batch", found)

    return fit


def training(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "config.json").read_text())["training"]
    return values


def configuration(data: Path, file: Path, **changes: Any) -> list[str]:
    """A configuration file with batches of 16, and the options that begin with it."""
    config = tiny_config("mae", data, **changes)
    save_config(replace(config, training=replace(config.training, batch_size=16)), file)
    return ["--config", str(file)]


def test_a_batch_is_chosen_by_real_steps_and_written_down(data: Path, tmp_path: Path) -> None:
    command = ["pretrain", str(data), *tiny_options("mae"), *AUTO, "--epochs", "1", "--out", "run"]
    ended = CommandProcess(command, tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    # Eight fit, and so would more; forty images in batches of eight make five steps.
    assert "a step of 8 images fits into memory" in ended.out
    assert "batches of 8, on cpu" in ended.out
    assert (training(tmp_path / "run")["batch_size"], training(tmp_path / "run")["parts"]) == (8, 1)
    assert len(read_records(tmp_path / "run", "step")) == 5


def test_the_batch_of_a_configuration_is_kept_in_parts(
    data: Path, tmp_path: Path, fitting: Callable[[int | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fitting(4)
    start = configuration(data, tmp_path / "start.json", parts=2)
    assert main(["pretrain", str(data), *start, *AUTO, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "batches of 16 in 4 parts: batch norm and contrasts between images see one part at a time" in said
    assert "epochs, batches of 16 in 4 parts, on cpu" in said
    assert (training(tmp_path / "run")["batch_size"], training(tmp_path / "run")["parts"]) == (16, 4)
    assert len(read_records(tmp_path / "run", "step")) == 4


def test_a_batch_that_fits_is_not_cut(
    data: Path, tmp_path: Path, fitting: Callable[[int | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fitting(64)
    start = configuration(data, tmp_path / "start.json", parts=2)
    assert main(["pretrain", str(data), *start, *AUTO, "--out", str(tmp_path / "run")]) == 0
    assert "parts" not in capsys.readouterr().out
    assert (training(tmp_path / "run")["batch_size"], training(tmp_path / "run")["parts"]) == (16, 1)


def test_the_same_command_resumes_with_the_same_batch(
    data: Path, tmp_path: Path, fitting: Callable[[int | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    start = configuration(data, tmp_path / "start.json", checkpoint_every=1, keep_every=1)
    command = ["pretrain", str(data), *start, *AUTO, "--out", str(tmp_path / "run")]
    fitting(8)
    assert main(command) == 0
    steps = read_records(tmp_path / "run", "step")
    # As after a stop: the last checkpoints and what was made of them are gone.
    for step in (3, 4):
        checkpoint_path(tmp_path / "run" / "checkpoints", step).unlink()
    (tmp_path / "run" / "encoder.safetensors").unlink()
    fitting(None)
    assert main(command) == 0
    assert "batches as the run has begun with" in capsys.readouterr().out
    again = read_records(tmp_path / "run", "step")
    assert [record["losses"] for record in again] == [record["losses"] for record in steps]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--accumulate", "2"], "--batch-size auto chooses the parts of a batch itself: leave --accumulate out"),
        (["--method", "mae", "--method.mask.ratio", "0.999"], "mask ratio"),
    ],
)
def test_what_makes_no_sense_is_refused(
    data: Path, tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", str(data), *AUTO, *options, "--out", str(run)]) == 2
    assert sentence in capsys.readouterr().err
    assert not run.exists()


def test_another_run_s_folder_is_refused_without_trying(
    data: Path, tmp_path: Path, fitting: Callable[[int | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["pretrain", str(data), *tiny_options("mae"), *quick_options(epochs=1), *out]) == 0
    fitting(None)
    assert main(["pretrain", str(data), *tiny_options("simmim"), *AUTO, "--epochs", "1", *out]) == 2
    assert "holds another run (its method is mae, not simmim)" in capsys.readouterr().err
