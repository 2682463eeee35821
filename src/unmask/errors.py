"""What a command line reports in one sentence with exit code 1: not the user's fault, and no bug to trace."""

from __future__ import annotations


class Failure(RuntimeError):
    """A run cannot go on; the message says why and what to try, in one sentence."""
