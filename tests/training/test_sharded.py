"""Sharded weights: training ends where whole ones end, checkpoints are the same file, whatever reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from test_trainer import CPU, batch_of
from torch import Tensor
from torch.distributed.tensor import DTensor

from forked_ranks import as_ranks
from tiny_runs import tiny_config, tiny_settings
from unmask.methods import METHODS
from unmask.methods.base import Method
from unmask.models.pretrained import encoder_file
from unmask.ranks import whole
from unmask.training.checkpoint import load_checkpoint, save_checkpoint
from unmask.training.sharded import gathered
from unmask.training.trainer import Precision, Trainer

CASES: dict[str, tuple[str, dict[str, Any], Precision]] = {
    "adamw": ("conmim", {}, "fp32"),
    "clipped": ("mae", {"clip": 0.01}, "fp32"),
    "each_clipped": ("mae", {"clip": 0.01, "clip_each": True}, "fp32"),
    "sgd": ("mae", {"kind": "sgd"}, "fp32"),
    "bert": ("mae", {"kind": "adamw_bert"}, "fp32"),
    "half": ("mae", {}, "fp16"),
}
RANKS = 2


def trainer_of(case: str, *, shard: bool) -> Trainer[Any]:
    name, changes, precision = CASES[case]
    settings = tiny_settings(name)
    changes = {"lr": 1e-3, "lr_batch": None, "warmup_epochs": 0.0, **changes}
    settings = replace(settings, optimizer=replace(settings.optimizer, **changes))
    config = tiny_config(name, Path("nowhere"), parts=RANKS, precision=precision)
    torch.manual_seed(0)
    method: Method = METHODS[name](settings)
    return Trainer(method, config.training, steps_per_epoch=4, device=CPU, shard=shard)


def steps(trainer: Trainer[Any], *numbers: int) -> Tensor:
    """Losses and norms of some steps on this rank's images."""
    figures = []
    for number in numbers:
        result = trainer.train_step([batch_of(trainer, 4, seed=number, first=8 * number + 4 * dist.get_rank())])
        figures.append((result.loss, result.gradient_norm))
    return torch.tensor(figures)


def weights(trainer: Trainer[Any]) -> dict[str, Tensor]:
    return {name: whole(value.detach()).clone() for name, value in trainer.trainee.state_dict().items()}


def work(number: int, folder: Path) -> None:
    for case in CASES:
        plain, sharded = (trainer_of(case, shard=shard) for shard in (False, True))
        # A look at the encoder before the first step and between steps must not disturb what follows.
        looked = [trainer.at_hand(lambda trainer=trainer: look(trainer)) for trainer in (plain, sharded)]
        figures = [steps(trainer, 0, 1) for trainer in (plain, sharded)]
        looked += [trainer.at_hand(lambda trainer=trainer: look(trainer)) for trainer in (plain, sharded)]
        state = sharded.state({})
        if number == 0:
            save_checkpoint(folder / case, state)
        dist.barrier()
        resumed = {shard: trainer_of(case, shard=shard) for shard in (False, True)}
        for trainer in resumed.values():
            trainer.restore(load_checkpoint(folder / case, trainer.checkpoint_device))
        last = [steps(trainer, 2) for trainer in (plain, sharded, resumed[False], resumed[True])]
        left = {f"figures.{index}": value for index, value in enumerate([*figures, *last, *looked])}
        trainers = {"plain": plain, "sharded": sharded, "whole_again": resumed[False], "sharded_again": resumed[True]}
        for name, trainer in trainers.items():
            left |= {f"{name}.{key}": value for key, value in weights(trainer).items()}
        file, _ = encoder_file(sharded.trainee.exported(), mean=(0.5,) * 3, std=(0.5,) * 3, facts={})
        left |= {f"file.{key}": value for key, value in file.items()}
        optimizer = [
            value for states in sharded.optimizer.state.values() for value in states.values() if value.ndim > 0
        ]
        assert all(isinstance(value, DTensor) for value in optimizer)
        save_file({key: value.contiguous() for key, value in left.items()}, folder / f"{case}-{number}")


def look(trainer: Trainer[Any]) -> Tensor:
    encoder = trainer.trainee.exported()
    images = torch.rand(2, 3, *encoder.image_size, generator=torch.Generator().manual_seed(0))
    found: Tensor = encoder(images).detach().float()
    return found


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two ranks have found in every case."""
    folder = tmp_path_factory.mktemp("sharded")
    as_ranks(RANKS, work, folder)
    return folder


def assert_nearly_all_close(found: dict[str, Tensor], ours: str, theirs: str) -> None:
    """Weights moved by a thousandth in every step; where a gradient is nothing but rounding, Adam makes steps of it."""
    names = [key.removeprefix(f"{theirs}.") for key in found if key.startswith(f"{theirs}.")]
    one, other = (torch.cat([found[f"{who}.{name}"].float().flatten() for name in names]) for who in (ours, theirs))
    assert ((one - other).abs() > 2e-5).float().mean() < 0.01


@pytest.mark.parametrize("case", CASES)
def test_sharded_weights_end_where_whole_ones_end(case: str, left: Path) -> None:
    for number in range(RANKS):
        found = load_file(left / f"{case}-{number}")
        figures = [found[f"figures.{index}"] for index in range(10)]
        torch.testing.assert_close(figures[1], figures[0], rtol=1e-5, atol=1e-6)  # two steps
        torch.testing.assert_close(figures[3], figures[2], rtol=1e-4, atol=1e-6)  # the third
        torch.testing.assert_close(figures[7], figures[6], rtol=1e-5, atol=1e-6)  # a look before them
        torch.testing.assert_close(figures[9], figures[8], rtol=1e-3, atol=1e-4)  # and after two
        assert_nearly_all_close(found, "sharded", "plain")


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_shards_is_any_checkpoint(case: str, left: Path) -> None:
    """Sharded or whole, a run that goes on from it takes the same step: sharded bit for bit the one that was taken."""
    for number in range(RANKS):
        found = load_file(left / f"{case}-{number}")
        assert torch.equal(found["figures.5"], found["figures.3"])
        torch.testing.assert_close(found["figures.4"], found["figures.3"], rtol=1e-5, atol=1e-6)
        for name in [key.removeprefix("sharded.") for key in found if key.startswith("sharded.")]:
            # Running statistics are each rank's own, and the first one's are kept.
            if number == 0 or "running" not in name:
                assert torch.equal(found[f"sharded_again.{name}"], found[f"sharded.{name}"]), name
        assert_nearly_all_close(found, "whole_again", "sharded")


@pytest.mark.parametrize("case", CASES)
def test_an_encoder_file_is_whole(case: str, left: Path) -> None:
    found = load_file(left / f"{case}-0")
    files = {key.removeprefix("file."): value for key, value in found.items() if key.startswith("file.")}
    ends = {name: [key for key in found if key.startswith("sharded.") and key.endswith(f".{name}")] for name in files}
    for name, value in files.items():
        assert any(torch.equal(value, found[key]) for key in ends[name]), name


def test_without_ranks_nothing_is_gathered() -> None:
    tensors = {"one": torch.zeros(3)}
    assert gathered(tensors)["one"] is tensors["one"]
