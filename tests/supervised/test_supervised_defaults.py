"""What is chosen where the user says nothing follows from the data."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.optimisation import OptimizerConfig
from unmask.supervised.defaults import (
    LIGHT,
    VIEWS_FOR_FULL_AUGMENTATION,
    augmentation_for,
    scaled_rate,
    supervised_batch,
    supervised_epochs,
)
from unmask.tasks.classification import ClassifierConfig


@given(st.integers(1, 10**7), st.booleans())
def test_a_batch_can_be_paired_and_is_no_larger_than_the_data(samples: int, accelerated: bool) -> None:
    batch = supervised_batch(samples, accelerated)
    assert 1 <= batch <= min(samples, 256 if accelerated else 64)
    assert batch % 2 == 0 or samples == 1
    assert samples < 8 or samples // batch >= 4 or batch == 2


def test_batches_of_some_data() -> None:
    assert [supervised_batch(samples, False) for samples in (1, 2, 3, 5, 7, 8, 100, 5000)] == [1, 2, 2, 2, 2, 2, 16, 64]
    assert supervised_batch(5000, True) == 256


@given(st.integers(1, 10**8), st.integers(1, 4096))
def test_epochs_come_to_two_thousand_steps_within_bounds(samples: int, batch: int) -> None:
    epochs = supervised_epochs(samples, batch)
    assert epochs == int(epochs)
    assert 30 <= epochs <= 400
    steps = epochs * max(1, samples // batch)
    if epochs < 400:
        assert steps >= 2000
    if epochs > 30:
        assert (epochs - 1) * max(1, samples // batch) < 2000


def test_epochs_of_some_data() -> None:
    assert supervised_epochs(60_000, 64) == 30
    assert supervised_epochs(1280, 64) == 100
    assert supervised_epochs(20, 2) == 200
    assert supervised_epochs(4, 4) == 400


@given(st.floats(1e-6, 1.0), st.sampled_from([None, 256, 512]), st.integers(1, 4096), st.integers(1, 4096))
def test_a_rate_scales_by_the_square_root(lr: float, lr_batch: int | None, usual: int, batch: int) -> None:
    optimizer = OptimizerConfig(lr=lr, lr_batch=lr_batch, weight_decay=0.3, min_lr=1e-7)
    scaled = scaled_rate(optimizer, usual, batch)
    peak = lr if lr_batch is None else lr * usual / lr_batch
    assert scaled.peak(batch) == pytest.approx(peak * math.sqrt(batch / usual))
    assert scaled.peak(999) == scaled.peak(batch), "absolute from here on"
    assert replace(scaled, lr=lr, lr_batch=lr_batch) == optimizer, "nothing else changes"


USUAL = ClassifierConfig()


def test_short_runs_have_light_augmentation() -> None:
    light = augmentation_for(USUAL, USUAL, VIEWS_FOR_FULL_AUGMENTATION - 1)
    assert light == replace(USUAL, mixup=0.0, cutmix=0.0, randaugment=None, erasing=0.0, crop_scale=(0.4, 1.0))
    assert not light.mixes
    assert augmentation_for(USUAL, USUAL, VIEWS_FOR_FULL_AUGMENTATION) == USUAL


def test_what_the_user_set_stays() -> None:
    mine = replace(USUAL, mixup=0.3, erasing=0.5, layer_decay=0.9)
    assert augmentation_for(mine, USUAL, 1000) == replace(mine, cutmix=0.0, randaugment=None, crop_scale=(0.4, 1.0))
    # Also where it happens to be the usual value.
    assert augmentation_for(USUAL, USUAL, 1000, {"mixup", "randaugment"}) == replace(
        USUAL, cutmix=0.0, erasing=0.0, crop_scale=(0.4, 1.0)
    )
    assert augmentation_for(USUAL, USUAL, 1000, LIGHT) == USUAL
    # A recipe of another usual mixup.
    recipe = replace(USUAL, mixup=0.5)
    assert augmentation_for(recipe, recipe, 1000).mixup == 0
    assert augmentation_for(USUAL, recipe, 1000).mixup == USUAL.mixup
