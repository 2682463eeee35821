"""The clock adds up what happens in each part."""

from __future__ import annotations

from time import sleep

import pytest
import torch

from unmask.bench.clock import PhaseClock


def test_times_are_added_by_part_in_the_order_of_their_first_appearance() -> None:
    clock = PhaseClock(torch.device("cpu"))
    for phase, seconds in (("late", 0.01), ("early", 0.02), ("late", 0.03)):
        with clock(phase):
            sleep(seconds)
    seconds = clock.seconds()
    assert list(seconds) == ["late", "early"]
    assert seconds["late"] >= 0.04
    assert seconds["early"] >= 0.02
    clock.clear()
    assert clock.seconds() == {}


def test_a_part_that_fails_is_not_counted() -> None:
    clock = PhaseClock(torch.device("cpu"))
    with pytest.raises(KeyError), clock("forward"):
        raise KeyError
    assert clock.seconds() == {}
