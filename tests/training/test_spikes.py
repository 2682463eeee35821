"""A loss that jumps is told once; one that falls, drifts or is noisy is not."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.training.spikes import FEWEST, SpikeWatch


def told(losses: list[float]) -> list[int]:
    watch = SpikeWatch()
    return [number for number, loss in enumerate(losses) if watch.note(loss) is not None]


@pytest.mark.parametrize("seed", range(5))
def test_losses_as_they_are_say_nothing(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=500)
    steps = np.arange(500)
    falling = 5.28 * np.exp(-steps / 150) + 1 + 0.05 * noise
    rising = 0.5 + steps / 1000 + 0.02 * noise
    assert told(falling.tolist()) == []
    assert told(rising.tolist()) == []
    assert told([0.25] * 500) == []


def test_a_jump_is_told_once() -> None:
    losses = [1 + 0.01 * (number % 7) for number in range(60)] + [9.0, 8.0, 7.0] + [1.0] * 30 + [20.0]
    assert told(losses) == [60, 93]


def test_the_sentence_says_from_where_to_where() -> None:
    watch = SpikeWatch()
    for _ in range(FEWEST):
        assert watch.note(2.0) is None
    sentence = watch.note(7.5)
    assert sentence is not None
    assert sentence.startswith("the loss jumped from about 2 to 7.5: ")


def test_the_first_losses_are_not_judged() -> None:
    assert told([1.0] * (FEWEST - 1) + [50.0]) == []
