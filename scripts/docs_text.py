"""The parts of a method's docs page that come from its docstring, and Markdown that means what the text says."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

PAPER = re.compile(r"arXiv (\d{4}\.\d{4,5})")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A method's docstring in its parts; together they have all of its words."""

    title: str
    paragraphs: tuple[str, ...]
    formula: str
    legend: str
    differences_title: str
    differences: str


def explanation(docstring: str) -> Explanation:
    """Take a docstring apart: `Formula:` up to the next unindented paragraph, `Shape legend:`, `Where ... code ...:`,
    and prose."""
    formula, rest = _formula(textwrap.dedent(docstring).strip())
    title, *paragraphs = [part.strip() for part in re.split(r"\n\s*\n", rest) if part.strip()]
    legend = [part for part in paragraphs if part.startswith("Shape legend:")]
    differing = [part for part in paragraphs if re.match(r"Where the authors' code\b[^:]*:", part)]
    heads = [part.split(":", 1)[0] for part in differing]
    return Explanation(
        title=title,
        paragraphs=tuple(part for part in paragraphs if part not in legend and part not in differing),
        formula=formula,
        legend="\n\n".join(legend),
        differences_title=heads[0] if heads else "",
        differences="\n\n".join(part.split(":", 1)[1].strip() for part in differing),
    )


def _formula(text: str) -> tuple[str, str]:
    """What follows `Formula:`, with its indented paragraphs, and the text without it."""
    found = re.search(r"^Formula:(.*(?:\n.*\S.*|\n[ \t]*(?=(?:\n[ \t]*)*\n[ \t]+\S))*)", text, flags=re.M)
    if found is None:
        return "", text
    return found.group(1).strip(" \t").strip("\n"), text[: found.start()] + text[found.end() :]


def prose_and_code(text: str) -> str:
    """Markdown of prose with lines of code between it: indented ones, and commands."""
    parts: list[str] = []
    for is_code, group in groupby(text.split("\n"), key=lambda line: line.startswith(("    ", "unmask ")) or not line):
        lines = "\n".join(group).strip("\n")
        if lines:
            parts.append(f"```text\n{textwrap.dedent(lines)}\n```" if is_code else markdown(lines))
    return "\n\n".join(parts)


def markdown(text: str) -> str:
    """Prose as Markdown that shows the same letters; code in backticks stays, lists get the room that they need."""
    lines: list[str] = []
    for line in "".join(_escaped(part) for part in re.split(r"(`[^`\n]*`)", text)).split("\n"):
        item, before = line.startswith("- "), lines[-1] if lines else ""
        in_list = before.startswith(("- ", "  "))
        if before and item != in_list and not line.startswith("  "):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _escaped(part: str) -> str:
    if part.startswith("`"):
        return part
    part = re.sub(r"([*<~\\])", r"\\\1", part)
    # An underscore inside a word is only an underscore.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", part)


def linked(text: str) -> str:
    """Markdown with links to the papers that it names."""
    return PAPER.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def code(text: str) -> str:
    """Text in backticks; nothing stays nothing."""
    return f"`{text}`" if text else ""
