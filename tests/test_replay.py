"""A step that was left out is found again: its batch, its weights, and where it broke."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tiny_runs import draw_images, tiny_config
from unmask.methods.mae import MAE
from unmask.pretrain import pretrain
from unmask.replay import replay
from unmask.run_folder import RunFolder
from unmask.trainee import Losses
from unmask.training.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from unmask.training.trainer import Trainer
from unmask.views import Views

CPU = torch.device("cpu")
BROKEN = 7


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "data")


def broken_run(data: Path, path: Path, monkeypatch: pytest.MonkeyPatch, *, late: bool) -> RunFolder:
    """A run whose decoder gives infinity in step 7 of 20, named at once or late."""
    healthy = MAE.losses

    def losses(self: MAE, views: Views, progress: float = 0.0) -> Losses:
        if round(progress * 20) != BROKEN:
            return healthy(self, views, progress)

        def spoil(module: object, given: object, output: Tensor) -> Tensor:
            return output * math.inf

        handle = self.decoder.blocks[0].mlp.fc1.register_forward_hook(spoil)
        try:
            return healthy(self, views, progress)
        finally:
            handle.remove()

    monkeypatch.setattr(MAE, "losses", losses)
    if late:
        monkeypatch.setattr(Trainer, "reading_is_free", False)
    folder = RunFolder(path)
    config = tiny_config("mae", data, epochs=10, log_every=20, checkpoint_every=5, parts=2)
    assert pretrain(config, folder, Console(quiet=True)).kind == "finished"
    return folder


@pytest.mark.parametrize("late", [False, True])
def test_a_step_is_taken_again_and_named_part_by_part(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    folder = broken_run(data, tmp_path / "run", monkeypatch, late=late)
    # Read at once the step's own weights were kept; read late, when they were gone, the last checkpoint's.
    assert folder.steps_left_out() == [5 if late else BROKEN]
    monkeypatch.setattr(Trainer, "reading_is_free", True)
    found = replay(folder, BROKEN, CPU)
    assert found.broken
    assert (found.step, found.began_at) == (BROKEN, 5 if late else BROKEN)
    assert found.weights == ()
    assert len(found.parts) == 2
    for part in found.parts:
        assert not math.isfinite(part.losses["reconstruction"])
        assert len(part.images) == 4
        assert all(str(data) in image for image in part.images)
    assert "decoder.head.weight" in found.gradients
    assert (found.crops_BCHW.shape, found.crops_BCHW.dtype) == ((8, 3, 32, 32), torch.uint8)


def test_a_layer_whose_output_is_not_finite_is_named(data: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    config = tiny_config("mae", data, epochs=2, checkpoint_every=1, keep_every=1)
    pretrain(config, folder, Console(quiet=True))
    healthy = replay(folder, 2, CPU)
    assert not healthy.broken
    assert [part.layer for part in healthy.parts] == [None]
    path = checkpoint_path(folder.checkpoints, 2)
    checkpoint = load_checkpoint(path, CPU)
    name = "model.encoder.vit.blocks.0.mlp.fc1.weight"
    tensors = checkpoint.tensors | {name: checkpoint.tensors[name] * math.inf}
    save_checkpoint(path, replace(checkpoint, tensors=tensors))
    found = replay(folder, 2, CPU)
    assert found.broken
    assert found.weights == ("encoder.vit.blocks.0.mlp.fc1.weight",)
    assert [part.layer for part in found.parts] == ["encoder.vit.blocks.0.mlp.fc1"]


def test_steps_that_cannot_be_taken_again_are_refused(data: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    pretrain(tiny_config("mae", data, epochs=2), folder, Console(quiet=True))
    # The one checkpoint is the last one: what lies before it begins at the random start.
    assert replay(folder, 1, CPU).began_at == 0
    with pytest.raises(ValueError, match="step 4 is not one of the run's 4"):
        replay(folder, 4, CPU)
    draw_images(data, 18)
    with pytest.raises(ValueError, match=r"now has 18 images, but the run began with 16: its batches cannot be made"):
        replay(folder, 4, CPU)
