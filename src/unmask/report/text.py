"""Numbers as a reader likes them. A no-break space keeps a number and its unit on one line."""

from __future__ import annotations

import math

SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


def percent(value: float) -> str:
    """62.81 as `62.8 %`."""
    return f"{value:.1f}{SPACE}%"


def interval(low: float, high: float) -> str:
    """Both ends in percent, with a dash between."""
    return f"{low:.1f}{DASH}{high:.1f}"


def points(difference: float) -> str:
    """A difference of two percentages with its sign: 15 as `+15.0 points`."""
    value = round(difference, 1)
    sign = "+" if value > 0 else MINUS if value < 0 else "±"
    return f"{sign}{abs(value):.1f}{SPACE}points"


def count(value: int) -> str:
    """1234567 as `1,234,567`."""
    return f"{value:,}"


def duration(seconds: float) -> str:
    """Two units at most: `41 s`, `3 min 20 s`, `2 h 14 min`, `3 d 4 h`."""
    total = round(seconds)
    for unit, size, small, small_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if total >= size:
            rest = total % size // small_size
            tail = f"{SPACE}{rest}{SPACE}{small}" if rest else ""
            return f"{total // size}{SPACE}{unit}{tail}"
    return f"{total}{SPACE}s"


def number(value: float) -> str:
    """About four significant digits, no exponent where a person would not write one."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if value == 0 or 1e-3 <= size < 1e6:
        text = f"{value:.4g}" if size < 1e4 else f"{value:,.0f}"
        return text.replace("-", MINUS)
    mantissa, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
