"""What all evaluations on the command line share: their options, and where their results go."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table
from typing_extensions import Doc

from unmask import __version__
from unmask.defaults import default_workers
from unmask.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """RUN, DATA and what every evaluation may be told."""

    run: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="RUN"),
        Doc("A run folder, an encoder.safetensors, or timm:NAME."),
    ]
    data: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="DATA"),
        Doc("Labelled images: one folder a class, under train/ and val/ or not; builtin:NAME."),
    ]
    seed: Annotated[int, Doc("Everything random follows from this.")] = 0
    device: Annotated[str, Doc("cpu, cuda, cuda:1, mps; auto takes the best there is.")] = "auto"
    workers: Annotated[int | None, Doc("Processes that decode images. Default: one a processor, at most 8.")] = None
    json: Annotated[bool, Doc("Print JSON lines instead of a table.")] = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {self.seed}")


def workers_of(options: EvaluationOptions) -> int:
    """Decoding processes, as asked for or as many as there are processors."""
    return default_workers() if options.workers is None else options.workers


def results_folder(run: str) -> RunFolder:
    """Where results about an encoder are kept: its run's folder, or a folder under runs/evaluations by its name."""
    folder = RunFolder(Path(run))
    if folder.config_file.exists():
        return folder
    path = Path(run).resolve()
    name = run.replace(":", "-") if run.startswith("timm:") else f"{path.parent.name}-{path.stem}"
    return RunFolder(Path("runs") / "evaluations" / name)


def data_stem(data: str) -> str:
    """A short name of the data, for folders."""
    path = Path(data.removeprefix("builtin:").rstrip("/")).resolve()
    # A folder's name may hold dots of its own: data.v1, data.v2.
    return (path.name if path.is_dir() else path.stem) or "data"


def record_result(
    options: EvaluationOptions,
    name: str,
    network: str,
    score: Mapping[str, Any],
    settings: Mapping[str, Any],
    at: tuple[int, float] | None = None,
) -> dict[str, Any]:
    """Add a result to the log beside the encoder, with everything needed to repeat it; returns the record.

    `at`: step and epoch of the weights; None for those of the finished run. ValueError where the log cannot be written.
    """
    folder = results_folder(options.run)
    step, epoch = at or (folder.last_step() if network == "pretrained" else (0, 0.0))
    record: dict[str, Any] = {
        "kind": "evaluation",
        "step": step,
        "epoch": epoch,
        "name": name,
        "network": network,
        "score": dict(score),
        "run": options.run,
        "data": options.data,
        "seed": options.seed,
        "settings": dict(settings),
        "version": __version__,
    }
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder.path} ({(error.strerror or 'error').lower()})") from error
    folder.append(record)
    return record


def write_drawing(svg: str, path: Path) -> None:
    """Write a chart as a file of its own. ValueError where it cannot be written."""
    # A file of its own needs the namespace that a drawing within a page does without.
    alone = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(alone, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {path} ({(error.strerror or 'error').lower()})") from error


def print_json(record: Mapping[str, Any]) -> None:
    """One line of JSON on standard output."""
    json.dump(record, sys.stdout, default=str)
    sys.stdout.write("\n")


def settings_of(config: Any) -> dict[str, Any]:
    """The plain values of a configuration."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def plain_table(*headers: str) -> Table:
    """A table without frames: names to the left, figures to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place else "left")
    return table
