"""What the lines of a run's log say, as figures with names and as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_A_STEP = ("loss", "lr", "grad_norm", "images_per_second")


def flat(values: Mapping[str, Any], between: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, the keys joined."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, between, f"{prefix}{key}{between}")
        else:
            found[f"{prefix}{key}"] = value
    return found


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a line of the log: `loss`, `losses/contrast`, `health/feature_rank`, `knn/top1`.

    The random start is what the trained network was at step 0: its scores have no name of their own.
    """
    kind = record.get("kind")
    found: dict[str, Any] = {"epoch": record.get("epoch"), "seconds": record.get("time")}
    if kind == "step":
        found |= {name: record.get(name) for name in _OF_A_STEP}
        found |= flat({"losses": record.get("losses")}, "/")
    elif kind == "evaluation":
        found |= flat({str(record.get("name")): record.get("score")}, "/")
    elif kind == "spike":
        found["spike"] = 1
    elif kind == "left out":
        found["left_out"] = 1
    else:
        found |= flat({str(kind): record.get("figures")}, "/")
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def notes_of(record: Mapping[str, Any]) -> list[str]:
    """What a line of the log says in words."""
    kind = record.get("kind")
    if kind == "spike":
        return [str(record.get("warning"))]
    if kind == "left out":
        back = record.get("back")
        came = "" if back is None else f"; the weights of step {back} came back"
        return [f"step {record.get('number')} is left out: {record.get('reason')}{came}"]
    warnings = record.get("warnings")
    return [str(warning) for warning in warnings] if isinstance(warnings, list) else []
