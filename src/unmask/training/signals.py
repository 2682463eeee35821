"""Ctrl-C, SIGTERM and SIGUSR1 (a cluster's warning) ask a run to stop; the run stops at the end of its step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopRequest:
    """A context in which SIGINT, SIGTERM and SIGUSR1 only set `asked`. A second one is harmless: the save goes on."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
