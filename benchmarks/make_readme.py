"""Write benchmarks/README.md from the files in benchmarks/results: the last results, their dates and commands."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT, Table

HEAD = """# Benchmarks

Every figure below was written by the command beside it; each is a ratio against a named peer, or our own former
version, measured in the same run. Entries take turns, medians are shown. Files in `results/` hold the raw figures with
machine, versions and seeds. `NOTES.md` tells what was tried, what it was thought to bring and what it brought.

Make this page anew with `python -m benchmarks.make_readme` after running any of the commands.
"""


def section(file: Path) -> str:
    """What the page says about one file of results."""
    result: dict[str, Any] = json.loads(file.read_text())
    docstring = ast.get_docstring(ast.parse(module_of(result["name"]).read_text())) or ""
    facts = result["facts"]
    machine = facts["machine"]
    where = f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores ({machine['instructions']})"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    head = f"## {result['name'].replace('_', ' ')}\n\n{docstring.strip()}\n\n"
    told = f"{facts['date']}, {where}, seed {facts['seed']}; {versions}:\n\n```\n{facts['command']}\n```\n"
    tables = [
        Table(t["caption"], tuple(t["columns"]), tuple(map(tuple, t["rows"]))).markdown() for t in result["tables"]
    ]
    return head + told + "\n" + "\n\n".join(tables) + "\n"


def module_of(name: str) -> Path:
    """The benchmark that writes results of this name: the longest module name that the result's name begins with."""
    known = [path for path in (ROOT / "benchmarks").glob("*.py") if name.startswith(path.stem)]
    return max(known, key=lambda path: len(path.stem))


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(file) for file in sorted(RESULTS.glob("*.json")))])


if __name__ == "__main__":
    (ROOT / "benchmarks" / "README.md").write_text(page())
