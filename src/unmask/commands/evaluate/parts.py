"""Evaluations of many parts that are kept one by one: what a person sees meanwhile, and how a signal stops them."""

from __future__ import annotations

from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unmask.progress import NowAndThen
from unmask.training.signals import StopRequest


class PartsStopped(Exception):
    """A signal has stopped an evaluation between two parts; everything found so far is kept."""


class Parts:
    """A live bar in a terminal, a line now and then elsewhere; SIGINT and SIGTERM end the evaluation after a part.

    `word` says what the parts are, `done` how many were found earlier, of `total`.
    """

    def __init__(self, word: str, *, total: int, done: int = 0) -> None:
        self.word = word
        self.total = total
        self.count = self._start = done
        self._stop = StopRequest()
        self._console = Console(stderr=True, soft_wrap=True)
        self._began = monotonic()
        self._now_and_then = NowAndThen()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(word, total=total, completed=done, said="")

    def __enter__(self) -> Parts:
        self._stop.__enter__()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._stop.__exit__(kind, error, trace)

    def advance(self, said: str) -> None:
        """One more part is found and kept; `said` is about it. Raises PartsStopped where a signal has come."""
        self.count += 1
        self._bar.update(self._task, completed=self.count, said=said)
        if not self._console.is_terminal and self._now_and_then.due():
            left = (monotonic() - self._began) / (self.count - self._start) * (self.total - self.count)
            self._console.print(
                f"{self.word} {self.count}/{self.total}  {said}  {left:.0f} s left", highlight=False, markup=False
            )
        if self._stop.asked is not None and self.count < self.total:
            raise PartsStopped(
                f"stopped by {self._stop.asked} after {self.count} of {self.total} {self.word}, all saved; "
                "the same command resumes"
            )
