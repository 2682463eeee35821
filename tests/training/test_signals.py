"""Ctrl-C, SIGTERM and SIGUSR1 only leave a note."""

from __future__ import annotations

import signal

import pytest

from unmask.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_as_often_as_it_comes(number: signal.Signals) -> None:
    noted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(each) for each in noted]
    with StopRequest() as stop:
        assert stop.asked is None
        for _ in range(3):
            signal.raise_signal(number)
            assert stop.asked == number.name
    assert [signal.getsignal(each) for each in noted] == before


def test_afterwards_a_signal_means_what_it_meant() -> None:
    with StopRequest():
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
