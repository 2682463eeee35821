"""The script for fish (3.4 and newer), in its own words: a `complete` for every option."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unmask.commands.completion.lines import Line, Option, Values

_HEAD = """\
# Completion of unmask for fish, made by `unmask completion fish`.

# The command that is being written; with an argument, the method that it names.
function __unmask_at
    set -l at
    set -l method conmim
    set -l last
    for word in (commandline -opc)[2..]
        if test "$at" = submit -a "$word" = --
            set at
        else if contains -- "$at" '' {parts}
            string match -q -- '-*' $word; or set at (string trim -- "$at $word")
        end
        if test "$last" = --method
            set method $word
        end
        if string match -q -- '--method=*' $word
            set method (string replace -- '--method=' '' $word)
        end
        set last $word
    end
    if set -q argv[1]
        echo $method
    else
        echo $at
    end
end

function __unmask_is
    set -l at (__unmask_at)
    test "$at" = "$argv"
end

function __unmask_knobs
    switch (__unmask_at method)
{knobs}
    end
end

complete -c unmask -f
"""


def fish_script(lines: list[Line], knobs: Mapping[str, tuple[str, ...]]) -> str:
    """For fish."""
    parts = " ".join(_quoted(" ".join(line.words)) for line in lines if line.parts)
    cases = "\n".join(
        f"        case {_quoted(name)}\n            printf '%s\\n' {' '.join(map(_quoted, some))}"
        for name, some in knobs.items()
    )
    head = _HEAD.replace("{parts}", parts).replace("{knobs}", cases)
    return "\n".join([head, *_rows(lines), ""])


def _rows(lines: list[Line]) -> Iterator[str]:
    for line in lines:
        above = " ".join(line.words[:-1])
        yield f"{_begun(above)} -a {_quoted(line.words[-1])} -d {_quoted(line.meaning)}"
    for line in lines:
        begun = _begun(" ".join(line.words))
        for option in line.options:
            yield _option(begun, option)
        if not line.parts:
            yield f"{begun}{_offered(line.arguments)}"
        if line.takes_method:
            yield f"{begun} -a '(__unmask_knobs)'"
        if line.words == ("pretrain",):
            # Behind the -- of submit no option is one to fish.
            flags = " ".join(flag for option in line.options for flag in option.flags)
            yield f"{_begun('pretrain; and contains -- -- (commandline -opc)')} -a {_quoted(flags)}"


def _begun(at: str) -> str:
    return f"complete -c unmask -n {_quoted(f'__unmask_is {at}'.rstrip())}"


def _option(begun: str, option: Option) -> str:
    names = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
    taken = "" if option.values is None else f" -r{_offered(option.values)}"
    return f"{begun} {names}{taken} -d {_quoted(option.meaning)}"


def _offered(values: Values) -> str:
    words = f" -a {_quoted(' '.join(values.words))}" if values.words else ""
    return f" {'-F' if values.files else '-f'}{words}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
