"""The order of an epoch: every image once, the same for any number of ranks, and local where shards are read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.data.order import WINDOW, EpochOrder


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.lists(st.integers(0, 59), max_size=8), st.data())
def test_every_image_comes_once_at_the_most(
    size: int, batch_size: int, parts: int, cuts: list[int], data: st.DataObject
) -> None:
    steps = size // (batch_size * parts)
    inside = sorted({cut for cut in cuts if 0 < cut < size})
    shards = data.draw(st.sampled_from([None, np.array([0, *inside], dtype=np.int64)]))
    order = EpochOrder(3, 1, size=size, batch_size=batch_size, parts=parts, shards=shards)
    taken = [order.take(step, part) for step in range(steps) for part in range(parts)]
    assert all(len(positions) == batch_size for positions in taken)
    everything = np.concatenate([*taken, np.empty(0, dtype=np.int64)])
    assert len(set(everything.tolist())) == len(everything) == steps * parts * batch_size
    assert all(0 <= position < size for position in everything.tolist())


def test_a_part_reads_few_shards_at_a_time_and_its_own_ones() -> None:
    """1,024 parts of a batch (as many ranks), 8,192 shards of 100 images: the real thing, in one process."""
    shards = np.arange(0, 819_200, 100, dtype=np.int64)
    order = EpochOrder(0, 2, size=819_200, batch_size=4, parts=1024, shards=shards)
    steps = 819_200 // 4096
    touched = []
    for part in (0, 1, 511, 1023):
        mine = np.stack([order.take(step, part) for step in range(steps)]) // 100
        touched.append(set(mine.ravel().tolist()))
        # 8 shards' worth of images, which may begin and end within a shard.
        assert len(touched[-1]) <= 9
        for begin in range(0, steps, 100):
            assert len(set(mine[begin : begin + 100].ravel().tolist())) <= WINDOW + 1
    assert not touched[0] & touched[2]
    assert len(touched[0] & touched[1]) <= 1


def test_epochs_and_seeds_have_other_orders() -> None:
    shards = np.arange(0, 1000, 50, dtype=np.int64)

    def first(seed: int, epoch: int) -> list[int]:
        return EpochOrder(seed, epoch, size=1000, batch_size=20, parts=2, shards=shards).take(0, 0).tolist()

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1) != first(1, 1)


@pytest.mark.parametrize("shards", [None, np.zeros(1, dtype=np.int64)])
def test_without_shards_parts_are_slices_of_one_batch(shards: np.ndarray | None) -> None:
    whole = EpochOrder(0, 0, size=24, batch_size=6, parts=1, shards=shards)
    halves = EpochOrder(0, 0, size=24, batch_size=3, parts=2, shards=shards)
    for step in range(4):
        assert whole.take(step, 0).tolist() == [*halves.take(step, 0), *halves.take(step, 1)]
