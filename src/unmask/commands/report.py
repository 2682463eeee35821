"""`unmask report RUN`: the page about a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.run_folder import RunFolder
from unmask.run_report import write_report
from unmask.supervised.config import is_supervised
from unmask.supervised.report import write_supervised_report


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained HTML page about a run: curves, pictures, health, configuration."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN"), Doc("A run folder, finished or not.")]
    show_channels: Annotated[
        tuple[int, ...] | None,
        Doc(
            "Channels that pictures show, counted from 1: one as grey, two as green and magenta, three as red, green "
            "and blue. Default: the first three."
        ),
    ] = None


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask report`."""
    command = parse(Report, arguments, command="report")
    folder = RunFolder(command.run)
    chosen = None if command.show_channels is None else tuple(channel - 1 for channel in command.show_channels)
    write = write_supervised_report if is_supervised(folder.values()) else write_report
    page = write(folder, chosen)
    Console(soft_wrap=True).print(str(page), highlight=False, markup=False)
    return 0
