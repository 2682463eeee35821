"""The one figure that sums up a score of any kind: top-1, mean average precision, mean IoU, box AP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.report.log import Record, of_kind

HEADLINES = {"top1": "top-1", "mean_ap": "mAP", "mean_iou": "mIoU", "box_ap": "box AP"}
"""What the one figure of each kind of score is called, by its key."""


def has_headline(record: Record) -> bool:
    """Whether the score of an evaluation in the log is summed up by one figure."""
    return any(isinstance(record["score"].get(key), int | float) for key in HEADLINES)


def scored(records: list[Record]) -> list[Record]:
    """The evaluations that one figure sums up, by step, the last of each kind; see `of_kind`."""
    return of_kind(
        [record for record in records if record.get("kind") == "evaluation" and has_headline(record)], "evaluation"
    )


def headline(score: Mapping[str, Any]) -> tuple[str, float, tuple[float, float] | None]:
    """The one figure that sums up a score of any kind: its name, its value in percent, and its 95 % interval."""
    key = next(key for key in HEADLINES if isinstance(score.get(key), int | float))
    interval_of = score.get("interval")
    return HEADLINES[key], float(score[key]), None if interval_of is None else (interval_of[0], interval_of[1])
