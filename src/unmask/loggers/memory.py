"""What is kept in a run's folder about a tracker: what it calls the run, how far it has got, what went wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unmask.json_lines import object_in


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one tracker and one run."""

    identity: str
    """Our name for the run there; it never changes."""
    known_as: str | None = None
    """The tracker's name for it; None before it was opened once."""
    step: int = -1
    """The last step that the tracker has."""
    where: str = ""
    """Where people find it."""
    trouble: str = ""
    """Why the last attempt failed; empty where it did not."""
    writer: int = 0
    """The process that has written this."""


def tracker_folder(run: Path, tracker: str) -> Path:
    """Where a tracker's files lie within a run's folder."""
    return run / "loggers" / tracker


def remembered(folder: Path) -> Memory | None:
    """What is kept in a tracker's folder; None where there is nothing, or nothing of ours."""
    try:
        values = object_in((folder / "state.json").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    if values is None or not all(
        _fits(values.get(field.name), str(field.type)) for field in dataclasses.fields(Memory)
    ):
        return None
    return Memory(**{field.name: values[field.name] for field in dataclasses.fields(Memory)})


def remember(folder: Path, memory: Memory) -> None:
    """Keep it."""
    aside = folder / "state.json.part"
    aside.write_text(json.dumps(dataclasses.asdict(memory)), encoding="utf-8")
    os.replace(aside, folder / "state.json")


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without passwords in URLs and without the values of variables that look like keys."""
    text = re.sub(r"://[^/@\s]*@", "://", text)
    for name, value in environment.items():
        if re.search("KEY|TOKEN|PASSWORD|SECRET", name.upper()) and len(value) > 5:
            text = text.replace(value, f"${name}")
    return text


def _fits(value: object, kind: str) -> bool:
    if kind == "int":
        return isinstance(value, int)
    return isinstance(value, str) or (value is None and kind == "str | None")
