"""`unmask completion bash|zsh|fish`: a script by which the shell completes commands, options and their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.completion.fish import fish_script
from unmask.commands.completion.lines import Line, all_lines, knobs_of_methods
from unmask.commands.completion.posix import bash_script, zsh_script
from unmask.commands.parse import parse

Shell = Literal["bash", "zsh", "fish"]
SCRIPTS: dict[Shell, Callable[[list[Line], dict[str, tuple[str, ...]]], str]] = {
    "bash": bash_script,
    "zsh": zsh_script,
    "fish": fish_script,
}


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Print a script that completes unmask's command lines. It costs nothing at a key press: all names are in it.

    bash: unmask completion bash > ~/.local/share/bash-completion/completions/unmask
    zsh:  unmask completion zsh > ~/.zfunc/_unmask    (with fpath+=~/.zfunc before compinit in ~/.zshrc)
    fish: unmask completion fish > ~/.config/fish/completions/unmask.fish

    Print it again after an update.
    """

    shell: Annotated[tyro.conf.Positional[Shell], Doc("The shell that will read it.")]


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask completion`."""
    command = parse(Completion, arguments, command="completion")
    script = SCRIPTS[command.shell](all_lines(), knobs_of_methods())
    Console(soft_wrap=True).print(script, end="", highlight=False, markup=False)
    return 0
