"""The full probe learns through crops of images, follows MAE's schedule, and is a function of its seed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from unmask.data.sources import ArraySource
from unmask.evaluation.features import pixel_extractor
from unmask.evaluation.full_linear import FullLinearConfig, full_linear, learning_rate
from unmask.evaluation.linear import LinearResult, ProbeEpoch

Classes = tuple[str, ...]

# The peak rate is MAE's, 6.4.
QUICK = FullLinearConfig(epochs=10, batch_size=24, device_batch=12, base_lr=6.4 * 256 / 24)


def _source(n: int, seed: int, *, random_labels: bool = False, classes: Classes = ("r", "g", "b")) -> ArraySource:
    """Noise in which the channel of the class is brighter."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = rng.integers(0, 130, size=(n, 12, 12, 3))
    images[np.arange(n), :, :, labels] += 120
    if random_labels:
        labels = rng.integers(3, size=n)
    return ArraySource("noise", images.astype(np.uint8), labels=labels, classes=classes)


def _run(
    config: FullLinearConfig = QUICK,
    *,
    seed: int = 0,
    train: ArraySource | None = None,
    test: ArraySource | None = None,
) -> LinearResult:
    return full_linear(
        pixel_extractor(4),
        _source(96, 1) if train is None else train,
        _source(60, 2) if test is None else test,
        config,
        height=8,
        width=8,
        channels=3,
        seed=seed,
        workers=0,
    )


def test_separable_classes_are_told_apart() -> None:
    result = _run()
    assert result.score.top1 == 100
    assert result.score.n == 60
    assert [epoch.epoch for epoch in result.curve] == list(range(QUICK.epochs))
    assert result.curve[-1].loss < result.curve[0].loss
    assert result.sweep == ()


def test_random_labels_get_chance() -> None:
    train, test = _source(96, 3, random_labels=True), _source(300, 4, random_labels=True)
    assert 25 < _run(train=train, test=test).score.top1 < 42


def test_same_seed_same_result_and_no_global_state() -> None:
    config = replace(QUICK, epochs=2)
    torch.manual_seed(1)
    first = _run(config, seed=3)
    torch.manual_seed(2)
    assert _run(config, seed=3) == first
    assert _run(config, seed=4).curve != first.curve


def test_every_epoch_is_reported_as_it_ends() -> None:
    heard: list[ProbeEpoch] = []
    result = full_linear(
        pixel_extractor(2),
        _source(24, 1),
        _source(12, 2),
        replace(QUICK, epochs=3),
        height=8,
        width=8,
        channels=3,
        seed=0,
        workers=0,
        on_epoch=heard.append,
    )
    assert tuple(heard) == result.curve


def test_the_rate_follows_the_batch_asked_for_even_where_the_train_set_is_smaller() -> None:
    config = FullLinearConfig(epochs=1, device_batch=32)
    assert config.peak_lr == pytest.approx(6.4)
    assert _run(config).lr == config.peak_lr
    assert replace(config, batch_size=512).peak_lr == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("images", "expected"),
    [(1_281_167, (512, 32)), (20_480, (512, 2)), (200, (200, 1)), (2, (2, 1)), (10_000, (500, 1))],
)
def test_batches_are_mae_s_on_imagenet_and_smaller_on_small_sets(images: int, expected: tuple[int, int]) -> None:
    at_once, accumulate = FullLinearConfig().batches(images)
    assert (at_once, accumulate) == expected
    assert at_once * accumulate <= images


def test_the_schedule_is_mae_s() -> None:
    config = FullLinearConfig()
    peak = 0.1 * 16384 / 256
    for epoch in (0.0, 0.5, 5.0, 9.99, 10.0, 30.5, 89.0, 90.0):
        if epoch < 10:
            expected = peak * epoch / 10
        else:
            expected = peak * 0.5 * (1 + math.cos(math.pi * (epoch - 10) / 80))
        assert learning_rate(config, epoch / 90) == pytest.approx(expected, abs=1e-12)
    assert learning_rate(replace(config, epochs=5), 0.2) == pytest.approx(peak)


def test_labels_are_matched_by_class_name() -> None:
    train = _source(96, 1)
    assert train.labels is not None
    renamed = _source(96, 1, classes=("b", "g", "r"))
    renamed.labels = 2 - train.labels
    assert _run(train=renamed).score.top1 == 100


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no train image has these classes of the test set: b$"):
        _run(train=_source(96, 1, classes=("r", "g", "x")))
    unlabelled = _source(96, 1)
    unlabelled.labels = unlabelled.classes = None
    with pytest.raises(ValueError, match=r"^the train images have no labels; put each class in a folder of its own$"):
        _run(train=unlabelled)
    with pytest.raises(ValueError, match=r"^a linear probe needs at least one epoch of one step, got 0 and 20$"):
        FullLinearConfig(epochs=0)
    with pytest.raises(ValueError, match=r"^batch norm needs at least two images at once, got batches of 16384 and 1 "):
        FullLinearConfig(device_batch=1)


def test_features_with_nan_are_refused() -> None:
    def broken(images_BCHW: Tensor) -> Tensor:
        return images_BCHW.float().mean(dim=(2, 3)) * math.nan

    with pytest.raises(ValueError, match=r"images have features with NaN or infinite values"):
        full_linear(broken, _source(24, 1), _source(6, 2), QUICK, height=8, width=8, channels=3, seed=0, workers=0)
