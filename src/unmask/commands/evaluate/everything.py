"""`unmask evaluate all RUN DATA`: every evaluation that the data allow, one after the other, in one table."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typing_extensions import Doc

from unmask.commands.evaluate.shared import EvaluationOptions, data_stem, plain_table, results_folder
from unmask.commands.parse import parse
from unmask.data.coco import detection_halves
from unmask.data.segmentation import segmentation_halves
from unmask.data.sources import open_source
from unmask.errors import STOPPED, Failure
from unmask.models.pretrained import open_encoder
from unmask.report.log import read_log
from unmask.report.results import markdown_table, rows_of
from unmask.supervised.classification import classification_halves

ORDER = (
    "knn",
    "linear",
    "fewshot",
    "attentive",
    "finetune",
    "partial",
    "robustness",
    "certified",
    "segment",
    "detect",
    "unlabelled",
)
"""From quick to slow; those without labels last."""
SLOW = ("partial", "certified")
"""What is left out unless it is asked for by --only: many runs, or thousands of passes an image."""
FLOORED = ("knn", "linear", "fewshot", "unlabelled")
"""What scores floors by default, and takes --no-floors; the others train once more for --floors."""
WITHOUT_FLOORS = ("robustness", "certified")


@dataclass(frozen=True, kw_only=True)
class Everything(EvaluationOptions):
    """Run every evaluation that DATA allow, with its defaults, and write one table. What was trained before is not
    trained again."""

    only: Annotated[tuple[str, ...], Doc("Only these protocols.")] = ()
    skip: Annotated[tuple[str, ...], Doc("All but these protocols.")] = ()
    floors: Annotated[bool, Doc("Also train from the random start where an evaluation trains.")] = False


def run(protocol: str, arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate all`."""
    command = parse(Everything, arguments, command="evaluate all")
    for name in (*command.only, *command.skip):
        if name not in ORDER:
            raise ValueError(f"unknown protocol {name!r}; choose among {', '.join(ORDER)}")
    open_encoder(command.run)
    allowed = allowed_by(command.data)
    wanted = [name for name in ORDER if (name in command.only if command.only else name not in SLOW)]
    chosen = [name for name in wanted if name in allowed and name not in command.skip]
    if not chosen:
        raise ValueError(f"{command.data} allows {', '.join(allowed)}, and none of these is asked for")
    console = Console(soft_wrap=True, stderr=command.json)
    folder = results_folder(command.run)
    before = len(read_log(folder.log_file)) if folder.log_file.exists() else 0
    for name in chosen:
        console.print(f"[bold]{name}[/bold]", highlight=False)
        try:
            if _evaluate(name, command) == STOPPED:
                return STOPPED
        except (ValueError, Failure) as error:
            # One that cannot run here (too few images of a class, an extra that is missing) must not end the rest.
            console.print(f"{name}: left out, {error}", highlight=False, markup=False)
    records = [record for record in read_log(folder.log_file)[before:] if record.get("kind") == "evaluation"]
    rows = [row for record in records for row in rows_of(record)]
    table = plain_table("evaluation", "network", "figure", "value", "95 % interval")
    for row in rows:
        table.add_row(row.evaluation, row.network, row.figure, row.value, row.interval)
    if not command.json:
        console.print(table)
    path = _write(folder.path / f"all-{data_stem(command.data)}.md", command, markdown_table(rows))
    console.print(f"table: {path}", highlight=False, markup=False)
    return 0


def allowed_by(data: str) -> tuple[str, ...]:
    """The protocols for which the data have what is needed. ValueError where they are no images at all."""
    if data.lower().endswith(".csv"):
        classification_halves(data)
        return ("linear", "finetune")
    found: list[str] = []
    for name, halves in (("segment", segmentation_halves), ("detect", detection_halves)):
        try:
            halves(data)
            found.append(name)
        except ValueError:
            continue
    if not found:
        try:
            classification_halves(data)
            found += ["knn", "linear", "fewshot", "attentive", "finetune", "partial", "robustness", "certified"]
        except ValueError:
            open_source(data)  # no images at all: this says so
        found.append("unlabelled")
    return tuple(found)


def _evaluate(name: str, command: Everything) -> int:
    """One protocol by its own command, with what was said here."""
    from unmask.commands.evaluate import PROTOCOLS

    arguments = [command.run, command.data, "--seed", str(command.seed), "--device", command.device]
    if command.workers is not None:
        arguments += ["--workers", str(command.workers)]
    if command.json:
        arguments.append("--json")
    if command.floors and name not in (*FLOORED, *WITHOUT_FLOORS):
        arguments.append("--floors")
    module = importlib.import_module(f"unmask.commands.evaluate.{PROTOCOLS[name][0]}")
    return int(module.run(name, arguments))


def _write(path: Path, command: Everything, table: str) -> Path:
    try:
        path.write_text(f"# {command.run} on {command.data}\n\n{table}", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ValueError(f"cannot write {path} ({(error.strerror or 'error').lower()})") from error
    return path
