"""The log of a run as records: one JSON object a line, of kind step, evaluation, health, spike, left out or event."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from unmask.json_lines import object_in

Record = dict[str, Any]
_HUGE = 1e15  # no step, time or score is as large; beyond, an axis has no two ends
_FINITE = ("step", "number", "back", "epoch", "time", "images_per_second")
_OFTEN_NOT_FINITE = ("loss", "lr", "grad_norm")
_SCORES = ("top1", "top5", "mean_class", "mean_ap", "mean_iou", "box_ap", "n")
_NEEDED = {
    "step": ("step",),
    "health": ("step",),
    "spike": ("step", "warning"),
    "left out": ("number", "reason"),
    "evaluation": ("epoch", "name", "network", "score"),
}
_TEXTS = ("name", "network", "warning", "reason")


def read_log(path: Path) -> list[Record]:
    """Every line of a run's `log.jsonl`, in the order they were written.

    A run killed in the middle of a write leaves a line that is no JSON, at the end of the file or, once
    resumed, before what follows. Such a line, and one that no run writes, becomes
    `{"kind": "damaged", "line": number}`, so that the report can say so.

    Raises:
        ValueError: `path` is not a file.
    """
    if not path.is_file():
        raise ValueError(f"there is no log at {path}")
    records: list[Record] = []
    # A kill can also cut a character in two: what cannot be decoded must not hide the lines before it.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if line.strip():
            record = object_in(line)
            if record is None or not _is_sound(record):
                record = {"kind": "damaged", "line": number}
            records.append(record)
    return records


def _is_sound(record: Record) -> bool:
    """Whether what reports reckon with is of the right kind: a log may come from somebody else."""
    kind, score = record.get("kind"), record.get("score")
    return (
        isinstance(kind, str)
        and all(key in record for key in _NEEDED.get(kind, ()))
        and all(_is_finite(record[key]) for key in _FINITE if key in record)
        and all(_is_number(record.get(key)) for key in _OFTEN_NOT_FINITE)
        and all(isinstance(record.get(key, ""), str) for key in _TEXTS)
        and all(_are_numbers(record.get(key, {})) for key in ("losses", "figures"))
        and isinstance(record.get("warnings", []), list)
        and (kind != "evaluation" or (isinstance(score, dict) and _is_sound_score(score)))
    )


def _is_sound_score(score: Record) -> bool:
    return all(_is_sound_figure(score.get(key)) for key in _SCORES) and _are_ends(score.get("interval"))


def _is_sound_figure(value: object) -> bool:
    """A number, or the mean and the interval of several draws (few labels)."""
    if isinstance(value, dict):
        return _is_finite(value.get("mean")) and _are_ends(value.get("interval"))
    return value is None or _is_finite(value)


def _are_ends(ends: object) -> bool:
    return ends is None or (isinstance(ends, list) and len(ends) == 2 and all(map(_is_finite, ends)))


def _are_numbers(values: object) -> bool:
    return isinstance(values, dict) and all(map(_is_number, values.values()))


def _is_number(value: object) -> bool:
    """Also infinity and what is no number at all: they are what a reader looks for. None was not logged."""
    return value is None or (isinstance(value, float) and not math.isfinite(value)) or _is_finite(value, 1e100)


def _is_finite(value: object, most: float = _HUGE) -> bool:
    return isinstance(value, int | float) and -most < value < most


def of_kind(records: list[Record], kind: str) -> list[Record]:
    """The records of one kind by step; of a step done twice (after a restart) the later records stand."""
    latest: dict[tuple[object, ...], Record] = {}
    for record in records:
        if record.get("kind") == kind:
            key = (float(record.get("step", 0)), record.get("name", ""), record.get("network", ""))
            latest[key] = record
    return sorted(latest.values(), key=lambda record: float(record.get("step", 0)))
