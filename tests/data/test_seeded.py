"""What libraries draw from global states follows from the seed, and leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from unmask.data.seeded import seeded


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def fail_inside() -> None:
    with seeded(8):
        draw()
        raise ZeroDivisionError


def test_the_seed_decides_and_nothing_stays_behind() -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = draw(), draw()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    assert draw() == expected[0]
    with seeded(2**40 + 5):
        first = draw()
    with seeded(7):
        other = draw()
    with pytest.raises(ZeroDivisionError):
        fail_inside()
    with seeded(2**40 + 5):
        assert draw() == first
    assert all(one != two for one, two in zip(first, other, strict=True))
    assert draw() == expected[1]
