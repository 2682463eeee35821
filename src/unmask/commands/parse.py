"""Command lines to dataclasses, with one sentence where a line makes no sense."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

T = TypeVar("T")
_FRAME = "─╭╮╰╯│ "


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
    """The first statement of tyro's framed message, on one line."""
    words: list[str] = []
    for line in said.splitlines():
        text = line.strip(_FRAME)
        if text.endswith("error") or text.startswith(("Required options", "Parsing error", "Value error")):
            continue
        if not text and words:
            break
        if text:
            words.append(text)
    sentence = " ".join(words).removesuffix("(required)").strip()
    return f"{sentence or 'the command line makes no sense'}; see unmask {command} --help"
