"""`unmask show METHOD`: every knob, with its type, default, meaning and source."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

import tyro
from rich.console import Console
from rich.markup import escape
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.methods import find_method


@dataclass(frozen=True, kw_only=True)
class Show:
    """Show a method: its idea, where code and paper differ, and every knob."""

    method: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="METHOD"), Doc("A method of `unmask methods`.")]


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One option of a method."""

    name: str
    type: str
    default: str
    meaning: str
    source: str


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask show`."""
    command = parse(Show, arguments, command="show")
    method = find_method(command.method)
    console = Console(soft_wrap=True)
    console.print(f"[bold]{method.info.title}[/bold]  {method.info.paper}", highlight=False)
    module = sys.modules[method.__module__]
    console.print(escape((module.__doc__ or "").strip()), highlight=False)
    # Lines and no table: a column too narrow would cut options in two, for people and for grep.
    for knob in knobs(method.Config()):
        console.print(
            f"\n[bold]--method.{knob.name}[/bold]  {escape(knob.type)} = {escape(knob.default)}", highlight=False
        )
        source = f" [{knob.source}]" if knob.source else ""
        console.print(f"    {escape(knob.meaning + source)}", highlight=False)
    return 0


def knobs(config: Any, prefix: str = "") -> Iterator[Knob]:
    """All fields of a configuration, those of nested ones under dotted names."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from knobs(value, f"{name}.")
            continue
        annotation, *notes = get_args(hints[field.name]) or (hints[field.name],)
        doc = next((note.documentation for note in notes if isinstance(note, Doc)), "")
        # A trailing [...] of a knob's documentation names the source.
        match = re.fullmatch(r"(?s)(.*?)(?:\s*\[([^\]]*)\])?", doc)
        assert match is not None
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        yield Knob(
            name=name,
            type=kind.replace("typing.", ""),
            default=_shown(value),
            meaning=match.group(1),
            source=match.group(2) or "",
        )


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
