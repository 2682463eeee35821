"""Numbers as a reader likes them."""

from __future__ import annotations

import math

import pytest

from unmask.report.text import MINUS, SPACE, count, duration, interval, number, percent, points


def test_percentages() -> None:
    assert percent(62.81) == f"62.8{SPACE}%"
    assert interval(46.11, 49.49) == "46.1\N{EN DASH}49.5"
    assert points(15.04) == f"+15.0{SPACE}points"
    assert points(-3) == f"{MINUS}3.0{SPACE}points"
    assert points(-0.01) == f"±0.0{SPACE}points"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (8040, "2 h 14 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds).replace(SPACE, " ") == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (-0.25, f"{MINUS}0.25"),
        (1234.5678, "1235"),
        (123456.0, "123,456"),
        (0.00015, f"1.5e{MINUS}4"),
        (3e7, "3e7"),
        (math.nan, "not finite"),
        (-math.inf, "not finite"),
    ],
)
def test_numbers(value: float, words: str) -> None:
    assert number(value) == words


def test_counts() -> None:
    assert count(1234567) == "1,234,567"
