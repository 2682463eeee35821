"""When a run that leaves steps out goes back to its last checkpoint, and when it ends."""

from __future__ import annotations

import pytest

from unmask.training.left_out import MOST_RETURNS, LeftOut
from unmask.training.trainer import NonFiniteLoss


def broken(step: int, *, applied: bool = False) -> NonFiniteLoss:
    return NonFiniteLoss("broken", step=step, applied=applied)


def test_single_steps_are_no_reason_to_go_back() -> None:
    left_out = LeftOut(3)
    assert not any(left_out.note(broken(step)) for step in (4, 5, 7, 8, 20, 22, 24))


def test_so_many_in_a_row_are() -> None:
    left_out = LeftOut(3)
    assert [left_out.note(broken(step)) for step in (4, 5, 6, 7, 8, 9)] == [False, False, True, False, False, True]


def test_a_step_that_was_applied_is_at_once() -> None:
    assert LeftOut(3).note(broken(4, applied=True))


def test_going_back_again_and_again_ends_the_run() -> None:
    left_out = LeftOut(1)
    for step in range(MOST_RETURNS):
        assert left_out.note(broken(10 * step))
    with pytest.raises(NonFiniteLoss, match=r"^broken$"):
        left_out.note(broken(99))
