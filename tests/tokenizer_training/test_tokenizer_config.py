"""What defines the training of a tokenizer."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from unmask.models.tokenizers.dvae import DVAEConfig
from unmask.optimisation import OptimizerConfig
from unmask.tokenizer_training.config import OPTIMIZERS, TokenizerTrainingConfig, first_difference

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
    assert first_difference(CONFIG.as_json(), same.as_json()) is None


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
    assert first_difference(CONFIG.as_json(), replace(CONFIG, **changes).as_json()) == sentence


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
