"""The log is read whatever a killed run left in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.report import read_log
from unmask.report.log import of_kind


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    lines = [{"kind": "step", "step": step, "loss": 0.5} for step in range(5)]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_log(path) == lines


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_cut_last_line_hides_nothing_before_it(tmp_path: Path, cut: int) -> None:
    whole = json.dumps({"kind": "event", "text": "größer"}, ensure_ascii=False).encode()
    path = tmp_path / "log.jsonl"
    path.write_bytes(whole + b"\n" + whole[:cut])
    records = read_log(path)
    assert records[0] == {"kind": "event", "text": "größer"}
    if cut < len(whole):
        assert records[1:] == [{"kind": "damaged", "line": 2}]


def test_a_line_cut_before_a_restart_is_only_that_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "step", "step": 1}\n{"kind": "st{"kind": "step", "step": 1}\n[1]\n\n{"kind": "event"}')
    kinds = [record["kind"] for record in read_log(path)]
    assert kinds == ["step", "damaged", "damaged", "event"]


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "1" * 5000,
        '{"step": 1}',
        '{"kind": ["step"], "step": 1}',
        '{"kind": "step"}',
        '{"kind": "step", "step": "one"}',
        '{"kind": "step", "step": NaN}',
        '{"kind": "step", "step": 1, "losses": [1]}',
        '{"kind": "step", "step": 1, "loss": "low"}',
        '{"kind": "step", "step": 1, "time": 1e999}',
        '{"kind": "health", "step": 1, "figures": {"rank": []}}',
        '{"kind": "spike", "step": 1}',
        '{"kind": "spike", "step": 1, "warning": ["high"]}',
        '{"kind": "left out", "step": 1, "reason": "broken"}',
        '{"kind": "left out", "step": 1, "number": "one", "reason": "broken"}',
        '{"kind": "left out", "step": 1, "number": 1, "reason": 3}',
        '{"kind": "evaluation", "epoch": 1, "name": [], "network": "pixels", "score": {}}',
        '{"kind": "evaluation", "epoch": 1, "name": "knn", "network": "pixels", "score": 3}',
        '{"kind": "evaluation", "epoch": 1, "name": "knn", "network": "pixels", "score": {"top1": 1, "interval": [1]}}',
    ],
    ids=lambda line: line[:60],
)
def test_a_line_that_no_run_writes_is_damaged(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"kind": "step", "step": 1, "loss": NaN}}\n{line}\n')
    assert [record["kind"] for record in read_log(path)] == ["step", "damaged"]


@pytest.mark.parametrize(
    ("top1", "kind"),
    [
        ('{"mean": 80.0, "interval": [70.0, 90.0]}', "evaluation"),
        ('{"mean": 80.0, "interval": null}', "evaluation"),
        ("null", "evaluation"),
        ('{"mean": "many", "interval": null}', "damaged"),
        ('{"mean": 80.0, "interval": [70.0]}', "damaged"),
        ("{}", "damaged"),
    ],
)
def test_scores_of_few_labels_are_means_with_intervals(tmp_path: Path, top1: str, kind: str) -> None:
    path = tmp_path / "log.jsonl"
    score = f'{{"budget": "1-shot", "top1": {top1}}}'
    path.write_text(f'{{"kind": "evaluation", "epoch": 1, "name": "fewshot", "network": "pixels", "score": {score}}}\n')
    assert [record["kind"] for record in read_log(path)] == [kind]


def test_a_missing_log_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no log at .*log\.jsonl"):
        read_log(tmp_path / "log.jsonl")


def test_of_a_step_done_twice_the_later_record_stands() -> None:
    records = [{"kind": "step", "step": step, "loss": loss} for step, loss in ((1, 9.0), (2, 8.0), (2, 7.0), (1, 6.0))]
    assert [(r["step"], r["loss"]) for r in of_kind(records, "step")] == [(1, 6.0), (2, 7.0)]
    evaluations = [
        {"kind": "evaluation", "step": 0, "name": name, "network": network}
        for name in ("knn", "linear")
        for network in ("random", "pixels")
    ]
    assert len(of_kind(evaluations, "evaluation")) == 4
