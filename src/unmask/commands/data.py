"""`unmask data DATA`: what a source of images holds, and what `unmask pretrain` would make of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.commands.pretrain import default_name, described, resolve
from unmask.commands.pretrain import read as read_pretrain
from unmask.data.halves import open_halves
from unmask.data.pixel_range import PixelRange, measured_range
from unmask.data.remote import is_url
from unmask.data.shard_writing import write_atomically, writing
from unmask.data.source import Source
from unmask.data.statistics import first_opened
from unmask.data.survey import Survey, SurveyConfig, survey
from unmask.defaults import default_workers
from unmask.progress import DoneOfTotal
from unmask.report.survey_words import BAD_NAMED, Plan, fact_rows, warnings
from unmask.report.text import count
from unmask.run_folder import RunFolder

_USUAL_SAMPLE = 2000
_USUAL_FILES = 100_000


@dataclass(frozen=True, kw_only=True)
class Data:
    """Look at images before training: their number, sizes, damage and copies, and what would be chosen for them."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA"), Doc("Images as for `unmask pretrain`.")]
    sample: Annotated[
        int | Literal["all"], Doc("Images that are decoded, spread over the data; only decoding finds all damage.")
    ] = _USUAL_SAMPLE
    files: Annotated[
        int | Literal["all"] | None,
        Doc(
            f"Files that are read, for sizes and exact copies. Default: {_USUAL_FILES}, of shards behind a URL those "
            "that are decoded."
        ),
    ] = None
    out: Annotated[Path | None, Doc("Also write a page with pictures, as this .html file.")] = None
    bad_files: Annotated[Path | None, Doc("Also write the names of all bad files, with the reasons, to this file.")] = (
        None
    )
    json: Annotated[bool, Doc("Print one JSON object instead of words.")] = False
    workers: Annotated[int | None, Doc("Processes that read and decode. Default: one a processor, at most 8.")] = None

    def __post_init__(self) -> None:
        for name, value in (("--sample", self.sample), ("--files", self.files)):
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, or all; got {value}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {self.workers}")
        if self.out is not None and self.out.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--out writes a page: {self.out} must end in .html")

    def config(self) -> SurveyConfig:
        """How much is looked at: files that are decoded are read, too."""
        sample = None if self.sample == "all" else self.sample
        asked = (self.sample if is_url(self.data) else _USUAL_FILES) if self.files is None else self.files
        read = None if asked == "all" or sample is None else max(asked, sample)
        workers = default_workers() if self.workers is None else self.workers
        return SurveyConfig(read=read, decoded=sample, workers=workers)


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask data`."""
    command = parse(Data, arguments, command="data")
    halves = open_halves(command.data)
    plan = planned(command.data, halves.pretraining)
    report = DoneOfTotal(Console(stderr=True, soft_wrap=True), lambda done, total: f"looked at  {done}/{total} files")
    found = survey(halves.in_range(plan.pixel_range), command.config(), report=report)
    if command.out is not None:
        # Only now: the pictures of a page bring matplotlib, which takes long to import.
        from unmask.report.survey_page import survey_page

        _write(command.out, survey_page(found, plan))
    if command.bad_files is not None:
        _write(command.bad_files, "".join(f"{note.path}\t{note.reason}\n" for note in found.bad))
    console = Console(soft_wrap=True)
    if command.json:
        told = found.as_dict() | {"pretrain": dict(plan.values), "warnings": warnings(found, plan)}
        console.print(json.dumps(told), highlight=False, markup=False)
    else:
        _tell(found, plan, command, console)
    return 0


def planned(data: str, source: Source) -> Plan:
    """What `unmask pretrain DATA` would do with no option beside, by its own functions; `source` is what it opens."""
    command, base = read_pretrain([data])
    folder = RunFolder(Path("runs") / default_name(command))
    try:
        config, notes = resolve(command, base, folder)
    except ValueError as error:
        return Plan(refusal=str(error), values={"refused": str(error)}, pixel_range=_range(source))
    settings, training = config.settings, config.training
    encoder = settings.encoder
    steps = len(source) // training.batch_size
    rows = described(config, folder, notes)
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (settings.mean, settings.std))
    return Plan(
        crop=(encoder.image_height, encoder.image_width),
        channels=encoder.channels,
        max_bad_share=training.max_bad_share,
        pixel_range=config.pixel_range,
        rows={
            "method": rows["method"],
            "encoder": rows["encoder"],
            "chosen": "; ".join(notes[1:]),
            "normalisation": f"mean {mean}, deviation {std}",
            "training": f"{rows['training']}; {count(steps)} steps an epoch",
            "learning rate": rows["learning rate"],
            "run folder": rows["out"],
        },
        values={
            "method": config.method,
            "encoder": encoder.name,
            "image_size": [encoder.image_height, encoder.image_width],
            "patch_size": encoder.patch_size,
            "channels": encoder.channels,
            "mean": list(settings.mean),
            "std": list(settings.std),
            "pixel_range": None if config.pixel_range is None else asdict(config.pixel_range),
            "batch_size": training.batch_size,
            "epochs": training.epochs,
            "steps_per_epoch": steps,
            "notes": notes,
        },
    )


def _range(source: Source) -> PixelRange | None:
    """The range of images that pre-training refuses, for the eye."""
    try:
        return measured_range(source, channels=first_opened(source).channels)
    except ValueError:
        return None


def _tell(found: Survey, plan: Plan, command: Data, console: Console) -> None:
    rows = {"data": command.data, **fact_rows(found)}
    for name, words in rows.items():
        console.print(f"[bold]{name:<15}[/bold]{escape(words)}", highlight=False)
    for note in found.bad[:BAD_NAMED]:
        console.print(f"{'':<15}{note.path}: {note.reason}", highlight=False, markup=False)
    if len(found.bad) > BAD_NAMED:
        more = count(len(found.bad) - BAD_NAMED)
        console.print(f"{'':<15}and {more} more; --bad-files FILE names all", highlight=False, markup=False)
    if plan.rows:
        console.print(f"\nunmask pretrain {command.data} would choose", highlight=False, markup=False)
        for name, words in plan.rows.items():
            console.print(f"[bold]{name:<15}[/bold]{escape(words)}", highlight=False)
    told = warnings(found, plan)
    console.print(f"\n{'worth a look' if told else 'nothing stands in the way of training'}", highlight=False)
    for sentence in told:
        console.print(f"- {sentence}", highlight=False, markup=False)
    for what, path in (("page", command.out), ("bad files", command.bad_files)):
        if path is not None:
            console.print(f"{what}: {path}", highlight=False, markup=False)


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
