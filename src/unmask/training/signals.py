"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 (a cluster's warning) ask a run to stop; it stops at the end of its step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""What a cluster sends to every process of a job whose time is nearly up; unhandled they end a process."""


@contextmanager
def warnings_held_back() -> Iterator[None]:
    """Within this context a cluster's warnings wait. In processes that are started within it they wait on, until there
    is a `StopRequest`: one that comes while a run still starts is neither lost nor the end of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopRequest:
    """A context in which SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 only set `asked`. A second one is harmless: the save goes
    on."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[signal.Signals, object] = {}
        self._held_back: set[signal.Signals] = set()

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, *WARNINGS):
            self._before[number] = signal.signal(number, self._note)
        # Whoever started us may have had them wait for this (see `warnings_held_back`).
        self._held_back = set(WARNINGS) & set(signal.pthread_sigmask(signal.SIG_UNBLOCK, WARNINGS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._held_back)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
