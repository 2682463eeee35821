"""Schedules at their ends, between them, and beyond them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.schedule import Schedule, warmup_then

VALUES = st.floats(-10, 10)
PROGRESS = st.floats(0, 1)


@settings(max_examples=50, deadline=None)
@given(start=VALUES, end=VALUES, progress=PROGRESS)
def test_a_schedule_goes_from_start_to_end_and_stays_between(start: float, end: float, progress: float) -> None:
    for kind in ("linear", "cosine"):
        schedule = Schedule(kind=kind, start=start, end=end)
        assert schedule.at(0) == pytest.approx(start, abs=1e-12)
        assert schedule.at(1) == pytest.approx(end, abs=1e-12)
        assert min(start, end) - 1e-9 <= schedule.at(progress) <= max(start, end) + 1e-9
    assert Schedule(kind="constant", start=start, end=end).at(progress) == start


@settings(max_examples=50, deadline=None)
@given(first=PROGRESS, second=PROGRESS)
def test_a_schedule_never_turns_back(first: float, second: float) -> None:
    early, late = sorted((first, second))
    for kind in ("linear", "cosine"):
        schedule = Schedule(kind=kind, start=0.2, end=0.9)
        assert schedule.at(early) <= schedule.at(late) + 1e-12


def test_shapes() -> None:
    linear, cosine = (Schedule(kind=kind, start=2, end=4) for kind in ("linear", "cosine"))
    assert linear.at(0.25) == pytest.approx(2.5)
    assert cosine.at(0.25) == pytest.approx(4 - 2 * (1 + math.cos(math.pi / 4)) / 2)
    assert cosine.at(0.5) == linear.at(0.5) == pytest.approx(3)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_progress_is_clamped(kind: str) -> None:
    schedule = Schedule(kind=kind, start=1, end=5)  # type: ignore[arg-type]
    assert schedule.at(-3) == schedule.at(0)
    assert schedule.at(1.5) == schedule.at(1)


@settings(max_examples=50, deadline=None)
@given(progress=PROGRESS, warmup=st.floats(0, 1), start=st.floats(0, 1), peak=st.floats(1, 3))
def test_warm_up_rises_to_the_peak_and_hands_over(progress: float, warmup: float, start: float, peak: float) -> None:
    after = Schedule(kind="cosine", start=peak, end=0.0)
    value = warmup_then(progress, warmup=warmup, start=start, peak=peak, after=after)
    if progress < warmup:
        assert value == pytest.approx(start + (peak - start) * progress / warmup)
    elif warmup < 1:
        assert value == pytest.approx(after.at((progress - warmup) / (1 - warmup)))
    else:
        assert value == peak


def test_warm_up_joins_without_a_jump_and_ends_at_the_end() -> None:
    after = Schedule(kind="cosine", start=1.0, end=0.1)

    def at(progress: float) -> float:
        return warmup_then(progress, warmup=0.2, start=0.0, peak=1.0, after=after)

    assert at(0) == 0
    assert at(0.1) == pytest.approx(0.5)
    assert at(0.2) == pytest.approx(1.0)
    assert at(0.2 - 1e-9) == pytest.approx(at(0.2 + 1e-9), abs=1e-6)
    assert at(1) == pytest.approx(0.1)


def test_a_schedule_may_end_early_and_keeps_its_end() -> None:
    schedule = Schedule(kind="linear", start=0.04, end=0.07, until=0.3)
    assert [schedule.at(progress) for progress in (0.0, 0.15, 0.3, 1.0)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    with pytest.raises(ValueError, match=r"^a schedule's until must be above 0, got 0$"):
        Schedule(until=0)
