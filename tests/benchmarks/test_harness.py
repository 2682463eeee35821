"""Entries take turns, results say where they come from, and the page is made of the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.harness import RESULTS, ROOT, Table, facts, paired_ratio, publish, shown, take_turns
from benchmarks.make_readme import module_of, page


def test_entries_take_turns_and_turn_back() -> None:
    calls: list[str] = []
    timings = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, warm_up=1)
    assert "".join(calls) == "ab" + "ba" + "ab" + "ba"
    assert all(len(timing.wall) == len(timing.cpu) == 3 for timing in timings.values())


def test_a_ratio_is_taken_round_by_round() -> None:
    assert paired_ratio([2, 40, 3], [1, 10, 2]) == 2


def test_results_tell_their_machine_versions_and_seed(tmp_path: Path) -> None:
    table = Table("Caption.", ("what", "value"), (("a", 0.12345), ("b", 1234.5), ("c", None)))
    publish("harness", [table], out=tmp_path / "deep" / "o.json", facts=facts(seed=7, batch=3), raw=[1])
    result = json.loads((tmp_path / "deep" / "o.json").read_text())
    assert result["facts"]["seed"] == 7
    assert result["facts"]["batch"] == 3
    assert {"torch", "timm", "unmask", "python"} <= set(result["facts"]["versions"])
    assert result["facts"]["machine"]["cores"] >= 1
    assert [row[1] for row in result["tables"][0]["rows"]] == [0.12345, 1234.5, None]
    assert "| a | 0.123 |" in table.markdown()


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (3, "3"), (2.0, "2"), (0.04567, "0.0457"), (98765.4, "98,765")]
)
def test_figures_are_short(value: float | None, text: str) -> None:
    assert shown(value) == text


def test_the_page_is_up_to_date_and_has_every_result() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert text == page()
    for file in RESULTS.glob("*.json"):
        assert json.loads(file.read_text())["facts"]["command"] in text
        assert module_of(json.loads(file.read_text())["name"]).exists()
