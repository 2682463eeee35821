"""Which libraries are here, in which version, and whether they can be imported.

They are imported in a process of their own: one that is built for another processor ends the process that imports it.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unmask.errors import ended_by
from unmask.extras import EXTRAS, essentials, fits, in_a_line, installed, minimum

_MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}
_NOT_IMPORTED = ("timm", "scikit-learn", "segmentation-models-pytorch", "mlflow-skinny", "alembic")
"""Their import takes seconds, and what they are built on is imported: their version must do."""
_PATIENCE = 300.0  # seconds that all imports of a process may take


@dataclass(frozen=True, kw_only=True)
class Library:
    """A distribution that this package can use."""

    name: str
    version: str | None
    """None: it is not installed."""
    wanted: str | None
    """The versions that will do; None: any."""
    too_old: bool
    """Whether its version is none of those that will do."""
    trouble: str | None
    """Why it cannot be imported, where it is installed and was tried."""

    @property
    def usable(self) -> bool:
        """Whether what needs it works."""
        return self.version is not None and self.trouble is None and not self.too_old


def essential_modules() -> dict[str, str]:
    """The distributions that everything needs, each with the module that is imported."""
    return {name: _MODULES.get(name, name.replace("-", "_")) for name in essentials()}


def extra_modules() -> dict[str, str]:
    """The distributions that extras need, each with the module that is imported."""
    return {name: module for extra in EXTRAS.values() for module, name in extra.libraries.items()}


def look_at_libraries(modules: Mapping[str, str]) -> list[Library]:
    """What there is of these distributions, whose modules are imported."""
    versions = {name: installed(name) for name in modules}
    here = [name for name, version in versions.items() if version is not None and name not in _NOT_IMPORTED]
    troubles = dict(zip(here, import_apart([modules[name] for name in here]), strict=True))
    return [
        Library(
            name=name,
            version=versions[name],
            wanted=None if minimum(name) is None else str(minimum(name)),
            too_old=not fits(name),
            trouble=troubles.get(name),
        )
        for name in modules
    ]


def import_apart(modules: Sequence[str]) -> list[str | None]:
    """What happens when these are imported one after another in a process of its own: None, or what is wrong."""
    told: list[str | None] = []
    while len(told) < len(modules):
        code = f"from unmask.doctor.libraries import import_and_tell; import_and_tell({list(modules[len(told) :])!r})"
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=_PATIENCE
            )
            output, end = done.stdout, _end(done.returncode)
        except subprocess.TimeoutExpired as error:
            output, end = (error.stdout or b"").decode(), f"its import takes more than {_PATIENCE:g} seconds"
        # Libraries may print on their own.
        told += [json.loads(line[1:]) for line in output.splitlines() if line.startswith("\0")]
        if len(told) < len(modules):
            # What came next is what ended the process; go on behind it.
            told.append(end)
    return told


def _end(code: int) -> str:
    return ended_by(-code) if code < 0 else "its import ends the process"


def import_and_tell(modules: Sequence[str]) -> None:
    """Import each, and write a line for it: NUL and JSON."""
    for module in modules:
        wrong = None
        try:
            importlib.import_module(module)
        except Exception as error:
            # Whatever others' code does while it is imported is what is to be told.
            wrong = in_a_line(error)
        sys.stdout.write(f"\n\0{json.dumps(wrong)}\n")
        sys.stdout.flush()
