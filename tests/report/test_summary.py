"""The head and the foot of the page say what the log says."""

from __future__ import annotations

import pytest

from unmask.report import (
    Score,
    accuracies,
    evaluation_table,
    health_table,
    left_out_table,
    run_facts,
    run_warnings,
)
from unmask.report.log import Record
from unmask.report.text import SPACE


def test_accuracies_take_the_last_score_of_each_network(records: list[Record]) -> None:
    knn, linear = accuracies(records)
    assert (knn.name, linear.name) == ("k-nearest-neighbour accuracy", "Linear accuracy")
    assert knn.random == Score(value=40, low=37, high=43)
    assert knn.pixels == Score(value=48, low=45, high=51)
    assert knn.pretrained == Score(value=55.25, low=52.25, high=58.25)
    assert accuracies([]) == ()


def test_facts(records: list[Record]) -> None:
    facts = {fact.name: fact.value.replace(SPACE, " ") for fact in run_facts(records, 123456)}
    assert facts == {
        "images seen": "123,456",
        "steps": "19",
        "epochs": "1.9",
        "wall time": "9 min 30 s",
        "images a second": "110",
    }
    assert [fact.name for fact in run_facts([], 0)] == ["images seen"]


def test_a_warning_is_said_once_with_its_steps(records: list[Record]) -> None:
    assert run_warnings(records) == (
        "The features are narrow: try a longer warm-up. (2 times, first at step 5, last at step 10)",
    )
    once: list[Record] = [{"kind": "health", "step": 1234, "figures": {}, "warnings": ["Bad."]}]
    assert run_warnings(once) == ("Bad. (step 1,234)",)
    assert run_warnings([]) == ()


def left_out(number: int, what: str, step: int) -> Record:
    return {"kind": "left out", "step": step, "number": number, "reason": f"{what}, samples 3, 1{number}"}


def test_steps_left_out_are_told_by_what_was_not_finite() -> None:
    # Two of them were read together, and one was left out again after a restart.
    records = [left_out(7, "loss 'contrast' is nan", 10), left_out(9, "the gradient's norm is inf", 10)]
    records += [left_out(1234, "loss 'contrast' is nan", 1234), left_out(7, "loss 'contrast' is nan", 7)]
    advice = "If there are many, try a lower --lr, clipping, or --precision fp32."
    assert run_warnings(records) == (
        "2 steps were left out of the training, because loss 'contrast' is nan "
        f"(2 times, first at step 7, last at step 1,234). {advice}",
        f"One step was left out of the training, because the gradient's norm is inf (step 9). {advice}",
    )
    table = left_out_table(records)
    assert table.title == "Steps left out (3)"
    assert table.rows == (
        ("7", "loss 'contrast' is nan", "3, 17"),
        ("9", "the gradient's norm is inf", "3, 19"),
        ("1,234", "loss 'contrast' is nan", "3, 11234"),
    )
    assert left_out_table([]).rows == ()
    back = run_warnings([*records, left_out(1235, "loss 'contrast' is nan", 1235) | {"back": 1000}])
    assert back[-1] == "After step 1,235 the weights of step 1,000 came back."


@pytest.mark.parametrize(
    ("losses", "end"),
    [
        ({5: 4.0}, "At step 5 the loss jumped to 4.0: resume."),
        (
            {5: 4.0, 60: 9.0, 1200: None},
            "At step 60 the loss jumped to 9.0: resume "
            "(the highest of 3 jumps, the first at step 5, the last at step 1,200).",
        ),
    ],
)
def test_jumps_of_the_loss_are_told_once(losses: dict[int, float | None], end: str) -> None:
    records: list[Record] = [
        {"kind": "spike", "step": step, "loss": loss, "warning": f"the loss jumped to {loss}: resume"}
        for step, loss in losses.items()
    ]
    assert run_warnings(records) == (end,)


def test_damaged_lines_are_told() -> None:
    (sentence,) = run_warnings([{"kind": "damaged", "line": 3}])
    assert sentence.startswith("One line of the log could not be read")


def test_tables(records: list[Record]) -> None:
    evaluations = evaluation_table(records)
    assert len(evaluations.rows) == 8
    assert evaluations.rows[-1][:4] == ("Linear accuracy", "pre-trained", "1.9", f"65.2{SPACE}%")
    health = health_table(records)
    assert health.headers[:3] == ("step", "feature std", "effective rank")
    assert health.rows[1][:3] == ("5", "0.2", "9")
    assert all(len(row) == len(table.headers) for table in (evaluations, health) for row in table.rows)


def test_a_long_table_is_thinned_to_its_last_row() -> None:
    records: list[Record] = [{"kind": "health", "step": s, "figures": {"rank": s}, "warnings": []} for s in range(1001)]
    table = health_table(records)
    assert len(table.rows) <= 24
    assert table.rows[-1] == ("1,000", "1000")
