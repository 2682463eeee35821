"""Comparisons in words and as a drawing."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from unmask.evaluation.metrics import Score, gap_noise, wilson_interval
from unmask.report.comparison import Line, dot_plot, in_markdown, markdown, ordered, sentences, versus


def _score(top1: float, n: int = 1000) -> Score:
    interval = wilson_interval(round(top1 * n / 100), n)
    return Score(top1=top1, top5=None, mean_class=top1, interval=interval, mean_class_interval=interval, n=n)


def _line(name: str, knn: float, linear: float, *, floor: bool = False) -> Line:
    return Line(name, {"knn": _score(knn), "linear": _score(linear)}, 12.34, floor, "")


LINES = [
    _line("raw pixels", 80, 83, floor=True),
    _line("random start", 60, 64, floor=True),
    _line("weak", 61, 63),
    _line("good", 70, 72),
    _line("best", 71, 74),
    Line("left out", {}, None, False, "left out: needs | a tokenizer"),
]


def test_the_noise_is_that_of_two_binomials() -> None:
    expected = 1.96 * math.sqrt(60 * 40 / 1000 + 70 * 30 / 500)
    assert gap_noise(_score(60), _score(70, 500)) == pytest.approx(expected)


def test_a_difference_counts_only_beyond_the_noise() -> None:
    start = LINES[1]
    assert versus(_line("a", 64.4, 50), start, "knn") == "above"
    assert versus(_line("a", 64.2, 50), start, "knn") == "even"
    assert versus(_line("a", 55.5, 50), start, "knn") == "below"
    assert versus(_line("a", 64.4, 50), start, "linear") == "below"


def test_floors_come_first_then_the_best_and_what_was_left_out_last() -> None:
    names = [line.name for line in ordered(LINES, "linear")]
    assert names == ["raw pixels", "random start", "best", "good", "weak", "left out"]


def test_the_table_says_it_all_and_stays_a_table() -> None:
    rows = markdown(LINES, ("knn", "linear")).splitlines()
    assert len(rows) == 2 + len(LINES)
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    assert rows[4].startswith("| best | 71.0 | 68.1–73.7 | above | 74.0 |")
    assert "| weak | 61.0 | 57.9–64.0 | even |" in rows[6]
    assert rows[7].endswith("| left out: needs \\| a tokenizer |")


def test_hostile_names_are_words_in_the_table_and_in_the_drawing() -> None:
    name = """<img src=x onerror=alert(1)>|[a](javascript:alert(2))\n\n# `b`"><script>alert(3)</script>"""
    lines = [*LINES[:2], _line(name, 70, 72)]
    rows = markdown(lines, ("knn", "linear")).splitlines()
    assert len(rows) == 2 + len(lines)
    assert in_markdown(name) in rows[-1]
    assert "<" not in rows[-1]
    assert "[a]" not in rows[-1]
    drawing = ElementTree.fromstring(dot_plot(lines, ("knn", "linear")))
    tags = {element.tag.rpartition("}")[2] for element in drawing.iter()}
    assert tags == {"svg", "style", "path", "text", "circle", "g", "title"}
    assert not [key for element in drawing.iter() for key in element.attrib if key.startswith("on")]
    assert any(element.text == name for element in drawing.iter())


def test_sentences_name_the_best_its_equals_and_those_that_learnt_nothing() -> None:
    assert sentences(LINES, "knn") == [
        "By knn, best is best with 71.0 %; within the noise of it: good.",
        "Not above the random start beyond the noise: weak.",
    ]
    assert sentences(LINES[:2], "knn") == []


def test_the_drawing_is_valid_and_holds_every_score_in_its_place() -> None:
    drawing = ElementTree.fromstring(dot_plot([*LINES, _line("<odd> & name", 50, 55)], ("knn", "linear")))
    titles = [title.text for title in drawing.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 2 * 6
    assert "<odd> & name, linear: 55.0 % (51.9–58.1)" in titles
    dots = [dot for dot in drawing.iter("{http://www.w3.org/2000/svg}circle") if dot.get("r") == "3.6"]
    places = [float(dot.get("cx", "0")) for dot in dots]
    assert places[0] < places[1]  # raw pixels: knn 80, linear 83
    assert min(places) == places[-2]  # the odd one's knn
