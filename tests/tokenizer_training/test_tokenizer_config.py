"""What defines the training of a tokenizer."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from typing import Any

import pytest

from unmask.models.tokenizers.dvae import DVAEConfig
from unmask.optimisation import OptimizerConfig
from unmask.run_folder import first_difference
from unmask.tokenizer_training.config import OPTIMIZERS, TokenizerTrainingConfig

CONFIG = TokenizerTrainingConfig(
    data="photos",
    kind="dvae",
    tokenizer=DVAEConfig(),
    teacher=None,
    optimizer=OPTIMIZERS["dvae"],
    image_height=32,
    image_width=32,
    batch_size=8,
    workers=0,
)


def test_runs_that_compute_the_same_are_the_same() -> None:
    same = replace(CONFIG, workers=4, device="cpu", log_every=3, checkpoint_every=7)
    assert first_difference(CONFIG.as_dict(), same.as_dict()) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 3}, "its seed is 0, not 3"),
        ({"tokenizer": DVAEConfig(beta=1.0)}, "its tokenizer.beta is 6.6, not 1.0"),
        ({"optimizer": OptimizerConfig(lr=2.0, lr_batch=None)}, "its optimizer.lr is 0.001, not 2.0"),
        ({"kind": "vq", "teacher": "runs/mae"}, "its kind is dvae, not vq"),
    ],
)
def test_the_first_difference_is_named(changes: dict[str, Any], sentence: str) -> None:
    assert first_difference(CONFIG.as_dict(), replace(CONFIG, **changes).as_dict()) == sentence


def test_the_trainer_gets_what_was_configured() -> None:
    changed: dict[str, Any] = {"epochs": 3.0, "seed": 5, "device": "cpu", "precision": "bf16", "log_every": 2}
    changed |= {"checkpoint_every": 7, "max_bad_share": 0.5, "batch_size": 6, "workers": 1}
    training = dataclasses.asdict(replace(CONFIG, **changed).training)
    assert {name: training.pop(name) for name in changed} == changed
    left = {"parts": 1, "compile": False, "keep_every": 0, "evaluate_every": 0.0, "max_nonfinite": 3}
    assert training == left | {"wait_for_disk": 0.0, "log": ()}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs must be a number above 0, got 0"),
        ({"batch_size": 0}, "batch_size must be a number above 0, got 0"),
        ({"seed": -1}, "seed must be a whole number from 0 to 2^63 - 1, got -1"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
        ({"max_bad_share": 0}, "max_bad_share must lie in (0, 1], got 0"),
        ({"crop_scale": (0.5, 0.2)}, "crop scale must be a range within (0, 1], got 0.5 to 0.2"),
        ({"kind": "vqkd"}, "a vqkd tokenizer learns from a teacher; give --teacher RUN or --teacher timm:NAME"),
        (
            {"teacher": "runs/mae"},
            "a dvae tokenizer takes no teacher; leave --teacher out, or choose --kind vq or vqkd",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        replace(CONFIG, **changes)
