"""Charts are sound SVG whatever the figures are."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.report import line_chart
from unmask.report.charts import Axis, smooth, tick_text
from unmask.report.text import MINUS

values = st.floats(allow_nan=True, allow_infinity=True, min_value=None, max_value=None, width=32)


def chart(*lines: list[float], smooth_over: int = 1, log_y: bool = False) -> ElementTree.Element:
    series = {f"line {index}": list(enumerate(map(float, line))) for index, line in enumerate(lines)}
    svg = line_chart(series, title="T", x_label="x", y_label="y", smooth_over=smooth_over, log_y=log_y)
    return ElementTree.fromstring(svg)


@settings(max_examples=40, deadline=None)
@given(lines=st.lists(st.lists(values, max_size=30), min_size=1, max_size=8), smooth_over=st.integers(1, 9))
def test_any_figures_give_sound_svg_with_finite_places(lines: list[list[float]], smooth_over: int) -> None:
    root = chart(*lines, smooth_over=smooth_over)
    for element in root.iter():
        for name in ("d", "x", "y", "cx", "cy"):
            assert not re.search("nan|inf", element.get(name, ""))


def test_names_are_escaped() -> None:
    svg = line_chart({"<b>&": [(0, 1)]}, title='"<i>', x_label="<x>", y_label="<y>", references={"<r>": 1})
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == '"<i>'
    words = {element.text for element in root.iter() if element.tag.endswith(("text", "title"))}
    assert {"<b>&", "<x>", "<y>", "<r>"} <= words


def test_higher_values_are_drawn_higher_and_later_ones_further_right() -> None:
    circles = [e for e in chart([1.0, 3.0, 2.0]).iter() if e.tag == "circle"]
    xs, ys = ([float(e.get(name, "")) for e in circles] for name in ("cx", "cy"))
    assert xs == sorted(xs)
    assert ys[1] < ys[2] < ys[0]


def test_what_is_not_finite_is_counted_and_marked() -> None:
    root = chart([1.0, math.nan, 2.0, math.inf])
    texts = [e.text or "" for e in root.iter()]
    assert any(text.endswith("not finite: 2") for text in texts)
    assert sum(text.startswith("line 0: not finite at") for text in texts) == 2


def test_a_long_line_stays_small_and_keeps_its_spike() -> None:
    line = [1.0 + 0.001 * (step % 7) for step in range(50_000)]
    line[31_234] = 1.02
    series = {"loss": list(enumerate(line))}
    svg = line_chart(series, title="T", x_label="x", y_label="y")
    assert len(svg) < 20_000
    assert len(line_chart({"loss": series["loss"]}, title="T", x_label="x", y_label="y", smooth_over=1250)) < 40_000
    path = max((e.get("d", "") for e in ElementTree.fromstring(svg).iter()), key=len)
    ys = [float(place.split()[1]) for place in re.split("[ML]", path)[1:]]
    assert min(ys) < sorted(ys)[1] - 5


@given(line=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), over=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_smoothing_stays_within_the_figures_and_keeps_straight_lines(line: list[float], over: int) -> None:
    smoothed = smooth(list(enumerate(line)), over)
    assert [x for x, _ in smoothed] == list(range(len(line)))
    assert all(min(line) - 1e-3 <= y <= max(line) + 1e-3 for _, y in smoothed)
    straight = [(float(x), 2.0 * x) for x in range(len(line))]
    assert [y for _, y in smooth(straight, over)] == pytest.approx([y for _, y in straight])


def test_smoothing_passes_over_what_is_not_finite() -> None:
    assert smooth([(0, 1.0), (1, math.nan), (2, 3.0)], 3)[1] == (1, 2.0)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
@settings(max_examples=60, deadline=None)
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    axis = Axis(low, low + span, 0, 100)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 7
    assert all(-0.1 <= axis.at(tick) <= 100.1 for tick in ticks)


def test_a_logarithmic_axis_has_powers_of_ten() -> None:
    assert Axis(0.5, 2000, 0, 1, log=True).ticks() == pytest.approx([1, 10, 100, 1000])
    ys = [float(e.get("cy", "")) for e in chart([1, 10, 100], log_y=True).iter() if e.tag == "circle"]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)


def test_tick_words_are_short() -> None:
    assert [tick_text(v, 3e4) for v in (0, 500, 20000)] == ["0", "500", "20k"]
    assert [tick_text(v, 1.5e-3) for v in (0, 5e-4, 1e-3)] == ["0", f"5e{MINUS}4", f"1e{MINUS}3"]
