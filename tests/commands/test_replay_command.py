"""`unmask replay`: the step that was left out last, in words and as a picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from tiny_runs import draw_images, quick_options, tiny_options
from unmask.cli import main
from unmask.methods.mae import MAE
from unmask.trainee import Losses
from unmask.views import Views


def test_a_step_that_was_left_out_is_told_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = draw_images(tmp_path / "data"), tmp_path / "run"
    healthy = MAE.losses

    def losses(self: MAE, views: Views, progress: float = 0.0) -> Losses:
        broken = math.inf if round(progress * 4) == 2 else 1.0
        return {name: loss * broken for name, loss in healthy(self, views, progress).items()}

    monkeypatch.setattr(MAE, "losses", losses)
    assert main(["pretrain", str(data), *tiny_options("mae"), *quick_options(), "--out", str(run)]) == 0
    assert "warning: step 2 is left out: loss 'reconstruction' is inf, samples " in capsys.readouterr().out
    assert main(["replay", str(run)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("step 2, with the weights of step 2 and the steps from there\n")
    assert f"part 0: reconstruction inf; images {data}/" in out
    assert "gradients that are not finite: " in out
    picture = run / "left_out" / "step_000000002.png"
    assert f"images:  {picture}" in out
    assert Image.open(picture).size == (8 * 34 + 2, 34 + 2)  # one row of eight images with a frame of 2 pixels
    monkeypatch.undo()
    assert main(["replay", str(run), "--step", "2"]) == 0
    assert "all is finite this time" in capsys.readouterr().out


def test_what_cannot_be_replayed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = draw_images(tmp_path / "data"), tmp_path / "run"
    assert main(["pretrain", str(data), *tiny_options("mae"), *quick_options(), "--out", str(run)]) == 0
    capsys.readouterr()
    for arguments, sentence in (
        ([str(run)], f"no step of {run} was left out; name one by --step"),
        ([str(run), "--step", "4"], "step 4 is not one of the run's 4"),
        ([str(data)], f"{data} is not a run folder: it has no config.json"),
    ):
        assert main(["replay", *arguments]) == 2
        assert capsys.readouterr().err == f"unmask: {sentence}\n"
