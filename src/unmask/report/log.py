"""The log of a run as records: one JSON object a line, of kind step, evaluation, health or event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_log(path: Path) -> list[Record]:
    """Every line of a run's `log.jsonl`, in the order they were written.

    A run killed in the middle of a write leaves a line that is no JSON, at the end of the file or, once
    resumed, before what follows. Such a line becomes `{"kind": "damaged", "line": number}`, so that the
    report can say so.

    Raises:
        ValueError: `path` is not a file.
    """
    if not path.is_file():
        raise ValueError(f"there is no log at {path}")
    records: list[Record] = []
    # A kill can also cut a character in two: what cannot be decoded must not hide the lines before it.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        records.append(record if isinstance(record, dict) else {"kind": "damaged", "line": number})
    return records


def of_kind(records: list[Record], kind: str) -> list[Record]:
    """The records of one kind by step; of a step done twice (after a restart) the later records stand."""
    latest: dict[tuple[object, ...], Record] = {}
    for record in records:
        if record.get("kind") == kind:
            key = (float(record.get("step", 0)), record.get("name", ""), record.get("network", ""))
            latest[key] = record
    return sorted(latest.values(), key=lambda record: float(record.get("step", 0)))
