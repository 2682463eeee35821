"""What a command line reports in one sentence with exit code 1: not the user's fault, and no bug to trace."""

from __future__ import annotations

import reprlib
import signal

STOPPED = 75
"""Exit code of a run that was stopped by a signal and can be resumed."""
LOST = 69
"""Exit code of one of several processes that train together, which ends because another one died or hangs."""


class Failure(RuntimeError):
    """A run cannot go on; the message says why and what to try, in one sentence."""

    code = 1
    """The exit code that it stands for."""


class RankLost(Failure):
    """Another process of a training has ended: all can be started again and resume."""

    code = LOST


def ended_by(number: int) -> str:
    """What a signal did to a process, in words."""
    name = signal.Signals(number).name
    return f"ended by {name}{' (most likely because memory ran out)' if name == 'SIGKILL' else ''}"


def in_short(value: object) -> str:
    """A value of a file as a sentence can name it: on one line, shortened where it is long, many or deep."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)
