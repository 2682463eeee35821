"""A clock for the parts of a training step, given to `Trainer` as its `phase`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch


class PhaseClock:
    """Seconds spent in each part, added up over all steps.

    On a GPU each part is framed by events in the device's own queue: nothing is waited for, and a part's time is what
    lies between them there. Waiting for data costs so much as the device stands idle for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[tuple[str, float | torch.Event, float | torch.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """What happens in this context belongs to `phase`."""
        begin = self._mark()
        yield
        self._spans.append((phase, begin, self._mark()))

    def clear(self) -> None:
        """Forget all so far."""
        self._spans.clear()

    def seconds(self) -> dict[str, float]:
        """Seconds by part, in the order in which parts were first met. Waits for the device."""
        wait_for(self._device)
        sums: dict[str, float] = {}
        for phase, begin, end in self._spans:
            if isinstance(begin, torch.Event) and isinstance(end, torch.Event):
                taken = begin.elapsed_time(end) / 1000
            else:
                assert isinstance(begin, float)
                assert isinstance(end, float)
                taken = end - begin
            sums[phase] = sums.get(phase, 0.0) + taken
        return sums

    def _mark(self) -> float | torch.Event:
        if self._device.type == "cpu":
            return perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event


def wait_for(device: torch.device) -> None:
    """Return when all that was queued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
