"""A log gives the charts it has the figures for, and no others."""

from __future__ import annotations

from unmask.report import learning_charts
from unmask.report.log import Record


def titles(records: list[Record]) -> list[str]:
    return [chart.title for chart in learning_charts(records)]


def test_every_figure_of_the_log_has_its_chart(records: list[Record]) -> None:
    assert titles(records) == [
        "Loss",
        "Loss: contrast",
        "Loss: reconstruction",
        "Learning rate",
        "Gradient norm",
        "k-nearest-neighbour accuracy",
        "Linear accuracy",
        "Feature spread",
        "Effective rank",
        "Similarity of pairs",
    ]


def test_an_empty_log_has_no_charts() -> None:
    assert titles([]) == []


def test_a_single_loss_is_drawn_once() -> None:
    records: list[Record] = [{"kind": "step", "step": 1, "loss": 2.0, "losses": {"contrast": 2.0}, "lr": None}]
    assert titles(records) == ["Loss: contrast"]


def test_one_evaluation_makes_no_curve(records: list[Record]) -> None:
    early = [record for record in records if record["kind"] == "evaluation" and record["step"] <= 10]
    assert titles(early) == []


def test_accuracy_is_drawn_with_its_interval_and_its_floors(records: list[Record]) -> None:
    svg = next(chart.svg for chart in learning_charts(records) if chart.title == "Linear accuracy")
    assert "random start: 50" in svg
    assert "raw pixels: 58" in svg
    assert "pre-trained: 65.25 at 1.9" in svg
    assert 'opacity="0.16"' in svg
