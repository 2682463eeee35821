"""Command lines to dataclasses, with one sentence where a line makes no sense."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from typing import TypeVar

import tyro

T = TypeVar("T")
_KINDS = {
    "INT": "a whole number",
    "INT|{auto}": "a whole number or auto",
    "INT|{all}": "a whole number or all",
    "FLOAT": "a number",
    "FLOAT FLOAT": "two numbers",
    "{[INT [INT ...]]}": "whole numbers",
    "[FLOAT [FLOAT ...]]": "numbers",
}


def parse(cls: type[T], arguments: Sequence[str], *, command: str, default: T | None = None) -> T:
    """An instance of `cls` from command-line arguments. ValueError, with one sentence, for what does not fit."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed, unknown = tyro.cli(
                cls,
                args=list(arguments),
                prog=f"unmask {command}",
                default=default,
                return_unknown_args=True,
            )
    except SystemExit as error:
        if not error.code:
            raise  # --help
        raise ValueError(_sentence(said.getvalue(), command)) from error
    if unknown:
        raise ValueError(_unknown(unknown[0], cls, command, default))
    assert parsed is not None
    return parsed


def given(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option before the line is parsed, where what follows depends on it; None without it."""
    value = None
    for position, argument in enumerate(arguments):
        if argument == option and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
    return value


def height_and_width(size: tuple[int, ...] | None) -> tuple[int, int] | None:
    """The two sides that --image-size means; None where it is not given. ValueError for more numbers than two."""
    if size is None:
        return None
    if len(size) not in (1, 2):
        raise ValueError(f"--image-size takes one number or two (height and width), got {len(size)}")
    return size[0], size[-1]


def _unknown(argument: str, cls: type[T], command: str, default: T | None) -> str:
    if not argument.startswith("-"):
        return f"unmask {command} does not know what to do with {argument!r}"
    option = argument.split("=")[0]
    near = difflib.get_close_matches(option, _options(cls, command, default), n=1)
    hint = f"did you mean {near[0]}?" if near else f"see unmask {command} --help"
    return f"unknown option {option}; {hint}"


def _options(cls: type[T], command: str, default: T | None) -> list[str]:
    """All option names, read from the help text."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(cls, args=["--help"], prog=f"unmask {command}", default=default)
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", said.getvalue())))


def _sentence(said: str, command: str) -> str:
    """tyro's framed message in one sentence of ours."""
    # Below the title, up to the next rule or empty line. Frames are drawn with letters or with plain ASCII.
    lines = [line.strip("│").rstrip() for line in said.splitlines()[1:]]
    inside = list(takewhile(lambda line: not _is_rule(line), dropwhile(_is_rule, lines)))
    text = " ".join(line.strip() for line in inside)
    if text.startswith("Missing from"):
        margin = _margin(inside[0])
        names = [line.strip() for line in inside if _margin(line) == margin + 4]
        wanted = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        statement = f"unmask {command} needs {wanted}, before the options"
    elif (match := re.match(r"Error parsing (--\S+): (.*)", text)) and (given := re.findall("'([^']*)'", match[2])):
        statement = f"{match[1]} takes {_kind(match[1], lines)}, not {' '.join(given)!r}"
    elif match := re.match(r"Error parsing \S+: (.*)", text):
        # What a configuration says of itself.
        statement = match[1]
    elif match := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*?),?\)", text):
        statement = f"{match[2]} cannot be {match[1]!r}; choose one of {match[3].replace(chr(39), '')}"
    elif match := re.match(r"Missing value for argument '(.*)'\. Expected (\d+) values", text):
        statement = f"{match[1]} needs {'a value' if match[2] == '1' else f'{match[2]} values'}"
    else:
        statement = text or "the command line makes no sense"
    return f"{statement}; see unmask {command} --help"


def _is_rule(line: str) -> bool:
    return not line.strip("─-╭╮╰╯ ")


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip())


def _kind(option: str, lines: list[str]) -> str:
    """What values an option takes, in words, from its line of the help text."""
    kinds = (line.strip().removeprefix(f"{option} ") for line in lines if line.strip().startswith(f"{option} "))
    kind = next(kinds, "another value").replace("{None}|", "")
    return _KINDS.get(kind, kind)
