"""A loader's share of fuzzing: some examples, the same ones every time, or as many as fit into so many minutes.

    UNMASK_FUZZ_MINUTES=10 pytest tests/fuzz

spends ten minutes on all loaders together, with other examples every time, and says how many cases each has read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzzing import MEMORY_MB, peak_mb

MINUTES = float(os.environ.get("UNMASK_FUZZ_MINUTES", "0"))
AT_ONCE = 200
tried: dict[str, int] = {}

Fuzz = Callable[..., None]


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Fuzz:
    """Draws damaged files and checks each; afterwards memory has stayed small and, if `quiet`, stderr empty."""
    loaders = [item for item in request.session.items if "fuzz" in getattr(item, "fixturenames", ())]
    name = request.node.name.removeprefix("test_")

    def run(
        strategy: st.SearchStrategy[Any], check: Callable[[Any], object], *, examples: int = 40, quiet: bool = True
    ) -> None:
        usual = settings(
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
        )

        def count(value: Any) -> None:
            tried[name] = tried.get(name, 0) + 1
            check(value)

        before = peak_mb()
        if not MINUTES:
            settings(usual, max_examples=examples, derandomize=True)(given(strategy)(count))()
        else:
            end = time.monotonic() + 60 * MINUTES / len(loaders)
            while time.monotonic() < end:
                settings(usual, max_examples=AT_ONCE)(given(strategy)(count))()
        assert peak_mb() - before < MEMORY_MB
        assert not quiet or capfd.readouterr().err == ""

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases each loader has read; only where minutes are asked for."""
    if MINUTES:
        for name, number in sorted(tried.items()):
            terminalreporter.write_line(f"{number:>9,} cases  {name.replace('_', ' ')}")
