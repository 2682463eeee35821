"""What a person sees while a run goes on: a live bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

QUIET_SECONDS = 15.0


class NowAndThen:
    """When it is time for another line, where nobody watches a bar."""

    def __init__(self) -> None:
        self._spoke = monotonic()

    def due(self) -> bool:
        """Whether there was nothing to read for a while; if so, the caller now writes a line."""
        now = monotonic()
        quiet = now - self._spoke > QUIET_SECONDS
        if quiet:
            self._spoke = now
        return quiet


class DoneOfTotal:
    """Says now and then how much of a piece of work is done, in the words of `sentence(done, total)`."""

    def __init__(self, console: Console, sentence: Callable[[int, int], str]) -> None:
        self._console = console
        self._sentence = sentence
        self._now_and_then = NowAndThen()

    def __call__(self, done: int, total: int) -> None:
        """Tell of so much, unless there was something to read a moment ago."""
        if self._now_and_then.due():
            self._console.print(self._sentence(done, total), highlight=False, markup=False)


class RunProgress:
    """Loss, images a second and time left of a run of `total` steps that begins at `start`; `word` says what it is."""

    def __init__(self, console: Console, word: str, *, total: int, start: int) -> None:
        self.console = console
        self.total = total
        self._start = start
        self._began = monotonic()
        self._now_and_then = NowAndThen()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss [bold]{task.fields[loss]}"),
            TextColumn("{task.fields[speed]} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(word, total=total, completed=start, loss="-", speed="-")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, step: int, *, loss: float, images_per_second: float) -> None:
        """Show the figures after `step` steps."""
        self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", speed=f"{images_per_second:.0f}")
        if not self.console.is_terminal and (self._now_and_then.due() or step == self.total):
            left = (monotonic() - self._began) / max(1, step - self._start) * (self.total - step)
            self.console.print(
                f"step {step}/{self.total}  loss {loss:.4f}  {images_per_second:.0f} images/s  {left:.0f} s left"
            )

    def say(self, sentence: str) -> None:
        """A line above the bar."""
        self._bar.console.print(sentence, highlight=False, markup=False)
