"""Fixed sine-cosine positions against their formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.models.positions import sincos_positions


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), quarter=st.integers(1, 6), prefix=st.integers(0, 3))
def test_columns_fill_the_first_half_and_rows_the_second(rows: int, columns: int, quarter: int, prefix: int) -> None:
    position = sincos_positions((rows, columns), 4 * quarter, prefix=prefix)
    assert position.shape == (1, prefix + rows * columns, 4 * quarter)
    assert position.dtype == torch.float32
    assert not position[:, :prefix].any()
    for patch in range(rows * columns):
        expected = []
        for place in (patch % columns, patch // columns):
            angles = [place / 10000 ** (index / quarter) for index in range(quarter)]
            expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        assert position[0, prefix + patch].tolist() == pytest.approx(expected, abs=1e-6)


def test_no_two_patches_share_a_position() -> None:
    position_ND = sincos_positions((14, 14), 64, prefix=0)[0]
    distance = torch.cdist(position_ND, position_ND)
    assert distance.fill_diagonal_(1).min() > 0.1


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^sine-cosine positions need a width divisible by 4, got 6$"):
        sincos_positions((2, 2), 6)
