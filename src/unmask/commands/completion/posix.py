"""Scripts for bash (3.2 and newer) and for zsh: tables that both read alike, and the few lines in which they differ."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from unmask.commands.completion.lines import KNOB, Line, Values

# `at` is the command so far, `last` the word before the one that is written, `method` what --method says.
_READ_A_WORD = """\
_unmask_read_word() {
    if [[ $at == submit && $1 == -- ]]; then
        at= last=
        return
    fi
    if [[ -z $at ]]; then
        [[ $1 == -* ]] || at=$1
    elif _unmask_has_parts "$at" && [[ $1 != -* ]]; then
        at="$at $1"
    fi
    if [[ $last == --method ]]; then method=$1; fi
    if [[ $1 == --method=* ]]; then method=${1#*=}; fi
    last=$1
}
"""

# Sets `found`, words with blanks between them, and `files`, which is not empty where paths will do.
_FIND = """\
_unmask_find() {
    local written=$1
    found= files=
    if [[ $last == -* ]] && _unmask_values "$at" "$last"; then
        return
    fi
    case $written in
        -*)
            _unmask_options "$at"
            if [[ $takes_method ]]; then
                _unmask_knobs "${method:-conmim}"
                found="$found $knobs"
            fi
            ;;
        *) _unmask_arguments "$at" ;;
    esac
}
"""

_BASH = """\
_unmask() {
    local line=${COMP_LINE:0:COMP_POINT} at= last= method= written= found= files= takes_method= knobs= before= one
    local -a given
    COMPREPLY=()
    read -ra given <<< "$line"
    if [[ $line != *[[:space:]] ]]; then
        written=${given[${#given[@]}-1]}
        unset "given[${#given[@]}-1]"
    fi
    for one in "${given[@]:1}"; do _unmask_read_word "$one"; done
    if [[ $written == --*=* ]]; then
        last=${written%%=*}
        before="$last="
        written=${written#*=}
    fi
    _unmask_find "$written"
    while IFS= read -r one; do
        [[ $one ]] && COMPREPLY+=("$one")
    done < <(compgen -W "$found" -- "$written"; [[ $files ]] && compgen -f -- "$written")
    if [[ $files ]]; then compopt -o filenames 2> /dev/null; fi
    # Readline replaces what stands behind the last character that breaks words, and no more.
    if [[ $COMP_WORDBREAKS == *=* ]]; then before=; fi
    if [[ $COMP_WORDBREAKS == *:* && $written == *:* ]]; then
        one=${written%"${written##*:}"}
        COMPREPLY=("${COMPREPLY[@]#"$one"}")
    fi
    if [[ $before && ${#COMPREPLY[@]} -gt 0 ]]; then COMPREPLY=("${COMPREPLY[@]/#/$before}"); fi
}
complete -F _unmask unmask
"""

_ZSH = """\
_unmask() {
    local at= last= method= found= files= takes_method= knobs= one
    local -a said
    for one in "${(@)words[2,CURRENT-1]}"; do _unmask_read_word "$one"; done
    if [[ $PREFIX == --*=* ]]; then
        last=${PREFIX%%=*}
        compset -P '*='
    fi
    _unmask_find "$PREFIX"
    if [[ -z $at || $found && $PREFIX != -* ]] && _unmask_meanings "$at"; then
        _describe -t commands 'command' said
        return
    fi
    if [[ $found ]]; then compadd -- ${=found}; fi
    if [[ $files ]]; then _files; fi
}
if [[ $funcstack[1] == _unmask ]]; then
    _unmask "$@"
else
    compdef _unmask unmask
fi
"""


def bash_script(lines: list[Line], knobs: Mapping[str, tuple[str, ...]]) -> str:
    """For bash."""
    return "\n".join(
        ["# Completion of unmask for bash, made by `unmask completion bash`.", *_shared(lines, knobs), _BASH]
    )


def zsh_script(lines: list[Line], knobs: Mapping[str, tuple[str, ...]]) -> str:
    """For zsh: a file `_unmask` of fpath, or to be sourced."""
    rows = [(" ".join(line.words[:-1]), line) for line in lines]
    meanings = {
        at: "said=("
        + " ".join(_quoted(f"{line.words[-1]}:{line.meaning}") for where, line in rows if where == at)
        + ")"
        for at, _ in rows
    }
    table = _table("_unmask_meanings", meanings)
    head = "#compdef unmask\n# Completion of unmask for zsh, made by `unmask completion zsh`."
    return "\n".join([head, *_shared(lines, knobs), table, _ZSH])


def _shared(lines: list[Line], knobs: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    parts = {" ".join(line.words): ":" for line in lines if line.parts}
    yield _table("_unmask_has_parts", parts)
    names = " ".join(line.words[0] for line in lines if len(line.words) == 1)
    options = {"": f"found={_quoted('--help --version')}"}
    arguments = {"": f"found={_quoted(names)}"}
    for line in lines:
        at = " ".join(line.words)
        flags = " ".join(flag for option in line.options for flag in option.flags) or "--help"
        options[at] = f"found={_quoted(flags)}" + (" takes_method=1" if line.takes_method else "")
        arguments[at] = f"found={_quoted(' '.join(line.parts))}" if line.parts else _assigned(line.arguments)
    yield _table("_unmask_options", options)
    yield _table("_unmask_arguments", arguments)
    yield _table("_unmask_knobs", {name: f"knobs={_quoted(' '.join(some))}" for name, some in knobs.items()})
    values = {
        (" ".join(line.words), flag): _assigned(option.values)
        for line in lines
        for option in line.options
        for flag in option.flags
        if option.values is not None
    }
    rows = [f"        {_quoted(f'{at} {flag}')}) {what} ;;" for (at, flag), what in values.items()]
    # A method's knob takes a value of its own; what could be offered for it nobody knows.
    rows += [f"        *' {KNOB}'*) ;;", "        *) return 1 ;;"]
    yield "\n".join(["_unmask_values() {", '    case "$1 $2" in', *rows, "    esac", "}", "", _READ_A_WORD, _FIND])


def _table(name: str, rows: Mapping[str, str]) -> str:
    """A function that does what stands behind its argument, and fails where nothing does."""
    cases = [f"        {_quoted(at)}) {what} ;;" for at, what in rows.items()]
    return "\n".join([f"{name}() {{", '    case "$1" in', *cases, "        *) return 1 ;;", "    esac", "}", ""])


def _assigned(values: Values) -> str:
    return f"found={_quoted(' '.join(values.words))} files={'1' if values.files else ''}"


def _quoted(text: str) -> str:
    return shlex.quote(text)
