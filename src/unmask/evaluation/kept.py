"""The parts of a long evaluation, kept one by one in a file of JSON lines: what was computed once is not lost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class KeptParts:
    """Results found under certain settings, in a file that may hold others found under other settings too.

    `settings` is everything that a result depends on, as plain values; what only changes how it is computed (workers,
    the size of a batch) stays out.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        # As they come back from the file: tuples are lists there.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def read(self) -> list[dict[str, Any]]:
        """The results found under these settings, in the order in which they were found.

        A line that a kill has cut short is passed over. ValueError where the file cannot be read.
        """
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ValueError(f"cannot read {self.path} ({_reason(error)})") from error
        found = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("settings") == self.settings:
                found.append(record["result"])
        return found

    def add(self, result: Mapping[str, Any]) -> None:
        """Keep one more result. ValueError where it cannot be written."""
        line = json.dumps({"settings": self.settings, "result": dict(result)})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a line that was cut short
                        file.write(b"\n")
                file.write(f"{line}\n".encode())
        except OSError as error:
            raise ValueError(f"cannot write {self.path} ({_reason(error)})") from error


def _reason(error: OSError) -> str:
    return (error.strerror or "error").lower()
