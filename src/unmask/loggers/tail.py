"""Reads a log that is still being written: every line once, and every step when it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unmask.json_lines import object_in
from unmask.loggers.base import Step
from unmask.loggers.figures import figures_of, notes_of


class LogTail:
    """The steps of a log after step `after`, each as one piece."""

    def __init__(self, log_file: Path, *, after: int = -1) -> None:
        self._file = log_file
        self._after = after
        self._offset = 0
        self._steps: dict[int, Step] = {}

    def read(self, *, whole: bool = False) -> Iterator[Step]:
        """The steps that have become complete since the last time, ascending; with `whole` the newest one too.

        A step is complete as soon as a later one is in the log. What comes of it after that (an evaluation of the
        finished encoder, say) is not given.
        """
        self._take_lines()
        newest = max(self._steps, default=-1)
        for number in sorted(self._steps):
            if number < newest or whole:
                self._after = number
                yield self._steps.pop(number)

    def _take_lines(self) -> None:
        try:
            with self._file.open("rb") as file:
                file.seek(self._offset)
                written = file.read()
        except FileNotFoundError:
            return
        ended = written[: written.rfind(b"\n") + 1]  # the rest of the last line is still to come
        self._offset += len(ended)
        for line in ended.decode("utf-8", errors="replace").splitlines():
            record = object_in(line)
            if record is not None:
                self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        number = record.get("step")
        if not isinstance(number, int) or number <= self._after:
            return
        step = self._steps.setdefault(number, Step(number))
        step.figures |= figures_of(record)
        step.notes += notes_of(record)
