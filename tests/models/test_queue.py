"""The queue keeps the newest keys, whatever the batches' lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.models.queue import KeyQueue


@given(length=st.integers(1, 9), batches=st.lists(st.integers(0, 12), max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_queue_holds_the_newest_keys(length: int, batches: list[int]) -> None:
    queue = KeyQueue(2, length)
    start = [tuple(key) for key in queue.keys_DQ.T.tolist()]
    pushed: list[tuple[float, ...]] = []
    for batch in batches:
        keys_GD = torch.arange(len(pushed), len(pushed) + batch)[:, None] + torch.tensor([0.0, 0.5])
        queue.push(keys_GD)
        pushed += [tuple(key) for key in keys_GD.tolist()]
    newest = pushed[-length:] if pushed else []
    held = [tuple(key) for key in queue.keys_DQ.T.tolist()]
    assert sorted(held) == sorted(newest + start[len(newest) :])
    assert int(queue.position) == len(pushed) % length


def test_a_queue_starts_with_random_directions_that_follow_from_the_seed() -> None:
    torch.manual_seed(0)
    queue = KeyQueue(16, 64)
    torch.testing.assert_close(queue.keys_DQ.norm(dim=0), torch.ones(64))
    torch.manual_seed(0)
    assert torch.equal(KeyQueue(16, 64).keys_DQ, queue.keys_DQ)
    assert not list(queue.parameters())


def test_position_and_keys_are_saved() -> None:
    queue, other = KeyQueue(2, 4), KeyQueue(2, 4)
    queue.push(torch.ones(3, 2))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(torch.zeros(2, 2))
    assert torch.equal(queue.keys_DQ, other.keys_DQ)
    assert queue.keys_DQ[:, 0].tolist() == [0, 0]


def test_an_empty_queue_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a queue must hold at least 1 key, got 0$"):
        KeyQueue(2, 0)
