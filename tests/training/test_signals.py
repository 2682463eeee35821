"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 only leave a note."""

from __future__ import annotations

import signal

import pytest

from unmask.training.signals import StopRequest, warnings_held_back


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_is_noted_as_often_as_it_comes(number: signal.Signals) -> None:
    noted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(each) for each in noted]
    with StopRequest() as stop:
        assert stop.asked is None
        for _ in range(3):
            signal.raise_signal(number)
            assert stop.asked == number.name
    assert [signal.getsignal(each) for each in noted] == before


def test_afterwards_a_signal_means_what_it_meant() -> None:
    # Whoever started the tests may have had this signal ignored (a shell does for what it starts in the background).
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest():
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_warning_that_comes_too_early_waits_for_the_run(number: signal.Signals) -> None:
    with warnings_held_back():
        signal.raise_signal(number)  # would end the process
        with StopRequest() as stop:
            assert stop.asked == number.name
        signal.raise_signal(number)  # what comes after the run does not end it either
        with StopRequest():
            pass
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
