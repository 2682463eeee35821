"""`unmask compare THING... --on DATA`: encoders, or methods pre-trained for it, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.data.sources import labelled
from unmask.errors import STOPPED
from unmask.methods import METHODS
from unmask.report.comparison import Line, dot_plot, in_markdown, markdown, ordered, sentences
from unmask.study import PIXELS, PROTOCOLS, RANDOM, Budget, Entry, Study, StudyStopped


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Score encoders side by side. A method's name stands for a short pre-training by it, all from one start."""

    things: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="THING"),
        Doc("Run folders, encoder files, timm:NAME, names of methods, or 'all' for every method."),
    ]
    on: Annotated[str, Doc("Labelled images: a folder with one folder a class, builtin:fashion-mnist.")]
    out: Annotated[Path | None, Doc("Folder of runs and results. Default: runs/compare-DATA.")] = None
    budget: Annotated[Budget, tyro.conf.arg(name="")] = Budget()


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask compare`."""
    command = parse(Compare, arguments, command="compare")
    names = list(METHODS) if command.things == ("all",) else list(command.things)
    if not names:
        raise ValueError("nothing to compare: give run folders, encoder files or names of methods")
    halves = labelled(command.on)
    console = Console(soft_wrap=True)
    stem = command.on.removeprefix("builtin:").rstrip("/").rpartition("/")[2]
    study = Study(command.out or Path("runs") / f"compare-{stem}", command.on, halves, command.budget, console)
    lines: list[Line] = []
    try:
        for entry in study.entries(names):
            lines.append(line_of(entry))
            if entry.reason:
                console.print(f"{entry.name}: left out, {entry.reason}", highlight=False, markup=False)
    except StudyStopped as stopped:
        console.print(str(stopped), highlight=False, markup=False)
        return STOPPED
    _print(lines, console)
    text = "\n".join(said for protocol in PROTOCOLS for said in sentences(lines, protocol))
    written = "\n".join([markdown(lines, PROTOCOLS), *map(in_markdown, text.splitlines())])
    (study.folder / "comparison.md").write_text(written + "\n", encoding="utf-8", errors="backslashreplace")
    (study.folder / "comparison.svg").write_text(dot_plot(lines, PROTOCOLS), "utf-8", "backslashreplace")
    console.print(text, highlight=False, markup=False)
    console.print(
        f"written: {study.folder}/comparison.md, comparison.svg, results.jsonl", highlight=False, markup=False
    )
    return 0


def line_of(entry: Entry) -> Line:
    """An entry as the report shows it."""
    note = entry.reason and f"left out: {entry.reason}"
    if entry.same_start is False:
        note = "an encoder of its own shape"
    return Line(entry.name, entry.scores, entry.rank, entry.name in (PIXELS, RANDOM), note)


def _print(lines: Sequence[Line], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("encoder")
    for protocol in PROTOCOLS:
        table.add_column(f"{protocol} %", justify="right")
        table.add_column("95 % interval", justify="right")
    table.add_column("rank", justify="right")
    for line in ordered(lines, PROTOCOLS[-1]):
        cells = [line.name]
        for protocol in PROTOCOLS:
            score = line.scores.get(protocol)
            cells += ["-", "-"] if score is None else [f"{score.top1:.1f}", "{:.1f} to {:.1f}".format(*score.interval)]
        table.add_row(*map(Text, cells), "-" if line.rank is None else f"{line.rank:.1f}")
    console.print(table)
