"""log.csv: the figures of a run as a table that spreadsheets and pandas read, a row a step and a column a figure."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from unmask.loggers.base import Logger, Run, Step

NAME = "log.csv"
FIRST = ("step", "epoch", "seconds", "loss", "lr", "grad_norm", "images_per_second")
LAST = "notes"


class CsvLogger(Logger):
    """Begins anew whenever it is opened: log.jsonl has all rows. A figure that was never there before widens the table,
    whose file is then written again."""

    def __init__(self) -> None:
        self._file = Path()
        self._columns: list[str] = []

    def open(self, run: Run) -> str:
        self._file = run.folder / NAME
        self._columns = [*FIRST, LAST]
        self._replace([])
        return run.identity

    @property
    def where(self) -> str:
        return str(self._file)

    def record(self, step: Step) -> None:
        new = [name for name in step.figures if name not in self._columns]
        if new:
            self._widen(new)
        with self._file.open("a", encoding="utf-8", newline="") as file:
            row = {"step": step.number, **step.figures, LAST: "; ".join(step.notes)}
            csv.DictWriter(file, self._columns).writerow(row)

    def close(self, *, finished: bool) -> None:
        """Every row is in the file already."""

    def _widen(self, new: list[str]) -> None:
        self._columns[-1:] = [*new, LAST]
        with self._file.open(encoding="utf-8", newline="") as file:
            self._replace(csv.DictReader(file))

    def _replace(self, rows: Iterable[Mapping[str, str]]) -> None:
        aside = self._file.with_suffix(".csv.part")
        with aside.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, self._columns)
            table.writeheader()
            table.writerows(rows)
        os.replace(aside, self._file)
