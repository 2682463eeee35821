"""Files of one JSON object a line, which a process that is killed may leave with a line cut short."""

from __future__ import annotations

import json
from typing import Any


def object_in(line: str) -> dict[str, Any] | None:
    """The JSON object in a line; None where the line is cut short or no object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
