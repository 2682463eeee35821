"""What can stand on a command line: every command with its options and the values that these take.

The commands say it themselves: their options are what tyro writes into a script for bash, their arguments the first
line of their help.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unmask.commands import COMMANDS, MODULES
from unmask.commands.bench import WHAT
from unmask.commands.evaluate import PROTOCOLS
from unmask.commands.show import knobs
from unmask.data.sources import BUILTIN
from unmask.methods import METHODS
from unmask.recipes import RECIPES

KNOB = "--method."
"""Options that begin so are those of a method; which there are depends on --method."""
_SPECIFICATION = "COMPLETION_SPEC = "
_BEHIND = {"submit": ("--", "pretrain")}
"""What a command must find behind its options before it looks at them."""


@dataclass(frozen=True, kw_only=True)
class Values:
    """What an option or an argument may be."""

    words: tuple[str, ...] = ()
    files: bool = False


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option by all of its names."""

    flags: tuple[str, ...]
    meaning: str
    values: Values | None
    """None: it takes no value."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A command, or a command with what follows it at once (`evaluate knn`)."""

    words: tuple[str, ...]
    meaning: str
    options: tuple[Option, ...] = ()
    arguments: Values = Values()
    """What its arguments may be, all together."""
    parts: tuple[str, ...] = ()
    """Words one of which must follow at once."""

    @property
    def takes_method(self) -> bool:
        """Whether a method's knobs are options of it."""
        return any(flag == "--method" for option in self.options for flag in option.flags)


def all_lines() -> list[Line]:
    """Every command, in the order of the help."""
    parts = {
        "evaluate": {name: meaning for name, (_, meaning) in PROTOCOLS.items()},
        "bench": WHAT,
    }
    lines = []
    for command, meaning in COMMANDS.items():
        if command not in parts:
            lines.append(_line((command,), meaning))
            continue
        lines.append(Line(words=(command,), meaning=meaning, parts=tuple(parts[command])))
        lines += [_line((command, part), what) for part, what in parts[command].items()]
    return lines


def knobs_of_methods() -> dict[str, tuple[str, ...]]:
    """The options of each method, `--method.FIELD`."""
    return {
        name: tuple(
            option for knob in knobs(method.Config()) for option in _knob_options(knob.name, flag=knob.type == "bool")
        )
        for name, method in METHODS.items()
    }


def _knob_options(name: str, *, flag: bool) -> tuple[str, ...]:
    room, dot, last = name.rpartition(".")
    return (f"{KNOB}{name}", f"{KNOB}{room}{dot}no-{last}") if flag else (f"{KNOB}{name}",)


def _line(words: tuple[str, ...], meaning: str) -> Line:
    usage = _said(words, ["--help"]).partition("\n\n")[0]
    script = _said(words, ["--tyro-write-completion", "bash", "-", *_BEHIND.get(words[0], ())])
    found = next(line for line in script.splitlines() if line.startswith(_SPECIFICATION))
    specification = ast.literal_eval(found.removeprefix(_SPECIFICATION))
    options = tuple(_option(stated) for stated in specification["options"] if not stated["flags"][0].startswith(KNOB))
    # Behind the name come [OPTIONS] or all of them, and arguments in capitals or as {one,of,these}.
    bare = re.sub(r"\[-.*?\]", "", usage.partition("[-h]")[2]).replace("[OPTIONS]", "")
    return Line(words=words, meaning=meaning, options=options, arguments=_arguments(bare))


def _said(words: tuple[str, ...], arguments: Sequence[str]) -> str:
    """What a command prints before it ends by itself."""
    module = importlib.import_module(f"unmask.commands.{MODULES.get(words[0], words[0])}")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        module.run([*words[1:], *arguments])
    return said.getvalue()


def _option(stated: dict[str, Any]) -> Option:
    flags = tuple(stated["flags"])
    meaning = re.sub(r"^\S+ • | \((default: .*|required)\)$", "", " ".join(stated["description"].split()))
    values = None
    if stated["type"] == "choice":
        values = Values(words=tuple(map(str, stated["choices"])))
    elif stated["type"] not in ("flag", "boolean"):
        values = _values_of(flags[-1], stated["description"])
    return Option(flags=flags, meaning=meaning, values=values)


def _values_of(flag: str, description: str) -> Values:
    if flag == "--method":
        return Values(words=tuple(METHODS))
    if flag == "--recipe":
        return Values(words=tuple(RECIPES))
    if flag == "--device":
        return Values(words=("auto", "cpu", "cuda", "mps"))
    if flag in ("--data", "--on"):
        return Values(words=BUILTIN, files=True)
    kind = description.partition(" • ")[0]
    # A name that the user makes up, a number, or a path.
    return Values(files="PATH" in kind or "FILE" in kind or "RUN" in kind)


def _arguments(usage: str) -> Values:
    words: list[str] = []
    files = False
    for name in usage.split():
        kind = name.strip("[].")
        if kind.startswith("{"):
            words += kind.strip("{}").split(",")
        elif kind == "METHOD":
            words += METHODS
        else:
            files = True
            if kind == "DATA":
                words += BUILTIN
            elif kind == "THING":
                words += ("all", *METHODS)
    return Values(words=tuple(words), files=files)
