"""What evaluations that train share on the command line: options, defaults by the data, the run, the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.evaluate.shared import (
    EvaluationOptions,
    data_stem,
    plain_table,
    print_json,
    record_result,
    results_folder,
    workers_of,
)
from unmask.commands.parse import height_and_width
from unmask.errors import STOPPED
from unmask.evaluate import gap_sentence, interval_noise
from unmask.models.pretrained import open_encoder
from unmask.report.headline import headline
from unmask.run_folder import RunFolder
from unmask.supervised.config import LabelBudget, Protocol, Settings, Start, SupervisedConfig
from unmask.supervised.defaults import augmentation_for, scaled_rate, supervised_batch, supervised_epochs
from unmask.supervised.protocols import build, train_size
from unmask.supervised.report import write_supervised_report
from unmask.supervised.run import final_score, start_encoder, train_supervised
from unmask.tasks.classification import ClassifierConfig
from unmask.tasks.detection import DetectionConfig
from unmask.tasks.segmentation import SegmentationConfig
from unmask.training.trainer import LOG_DOC, Precision, Tracker, TrainingConfig, choose_device

S = TypeVar("S", ClassifierConfig, SegmentationConfig, DetectionConfig)
T = TypeVar("T")
NETWORKS: dict[Start, str] = {"pretrained": "pre-trained", "random": "random start"}


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(EvaluationOptions):
    """What every evaluation that trains may be told. The same command again resumes a run that was stopped."""

    out: Annotated[Path | None, Doc("Run folder. Default: PROTOCOL-DATA within RUN's folder.")] = None
    floors: Annotated[bool, Doc("Also train from the random start, in a folder beside.")] = False
    epochs: Annotated[float | None, Doc("Passes over the train images. Default: about 2000 steps, 30 at least.")] = None
    batch_size: Annotated[int | None, Doc("Images of one optimizer step. Default: by data and device.")] = None
    lr: Annotated[float | None, Doc("Peak learning rate, absolute. Default: the recipe's, scaled to the batch.")] = None
    accumulate: Annotated[int, Doc("Parts into which a batch is cut, one after the other, to save memory.")] = 1
    precision: Annotated[Precision, Doc("auto: bf16 on GPUs that have it, else fp16; fp32 elsewhere.")] = "auto"
    compile: Annotated[bool, Doc("Compile the losses by torch.compile: slow start, faster steps.")] = False
    evaluate_every: Annotated[float, Doc("Epochs between scores on the test images; 0: at the end alone.")] = 0.0
    log_every: Annotated[int, Doc("Steps between lines of the log.")] = 10
    log: Annotated[tuple[Tracker, ...], LOG_DOC] = ()
    checkpoint_every: Annotated[int, Doc("Steps between checkpoints.")] = 500
    max_bad_share: Annotated[float, Doc("Share of unreadable images past which the run stops.")] = 0.1
    image_size: Annotated[
        tuple[int, ...] | None, Doc("Side of the images in pixels, or height and width. Default: as in pre-training.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be trained, before the data have decided the rest."""

    protocol: Protocol
    settings: Settings
    usual_batch: int
    """Images of the batch that the settings' learning rate is for."""
    epochs: float | None = None
    batch_size: int | None = None
    budget: LabelBudget = LabelBudget()
    fit_augmentation: ClassifierConfig | None = None
    """Where set: lighten the augmentation of short runs, unless the user changed these usual settings."""
    asked: frozenset[str] = frozenset()
    """Fields of the settings that the user named on the command line; they stay as they are."""


def side(options: TrainedOptions) -> tuple[int | None, int | None]:
    """Height and width asked for. ValueError for more than two numbers."""
    return height_and_width(options.image_size) or (None, None)


def with_size(settings: S, options: TrainedOptions) -> S:
    """The settings of a task for images of the size that `--image-size` asks for; without it as they are."""
    height, width = side(options)
    return settings if height is None else replace(settings, image_height=height, image_width=width)


def resolve(options: TrainedOptions, plan: Plan, start: Start) -> SupervisedConfig:
    """The full configuration of a run, with what the user left open chosen for the data."""
    samples = train_size(plan.protocol, options.data, plan.budget, options.seed)
    accelerated = choose_device(options.device).type != "cpu"
    batch = first_set(options.batch_size, plan.batch_size, supervised_batch(samples, accelerated))
    epochs = first_set(options.epochs, plan.epochs, supervised_epochs(samples, batch))
    training = TrainingConfig(
        epochs=epochs,
        batch_size=batch,
        workers=workers_of(options),
        parts=options.accumulate,
        **{
            name: getattr(options, name)
            for name in (
                "seed",
                "device",
                "precision",
                "compile",
                "log_every",
                "log",
                "checkpoint_every",
                "evaluate_every",
                "max_bad_share",
            )
        },
    )
    settings = plan.settings
    if plan.fit_augmentation is not None:
        assert isinstance(settings, ClassifierConfig)
        settings = augmentation_for(settings, plan.fit_augmentation, samples * epochs, plan.asked)
    optimizer = settings.optimizer
    if options.lr is not None:
        optimizer = replace(optimizer, lr=options.lr, lr_batch=None)
    elif plan.batch_size is None:
        optimizer = scaled_rate(optimizer, plan.usual_batch, batch)
    return SupervisedConfig(
        protocol=plan.protocol,
        encoder=options.run.rstrip("/") or options.run,
        start=start,
        data=options.data.rstrip("/") or options.data,
        budget=plan.budget,
        settings=replace(settings, optimizer=optimizer),
        training=training,
    )


def first_set(*values: T | None) -> T:
    """The first value that is not None: what the user said before what we would choose. Zero is a value."""
    return next(value for value in values if value is not None)


def default_out(options: EvaluationOptions, plan: Plan, suffix: str = "") -> Path:
    """The run folder when the user names none: the same command always means the same folder."""
    parts = [plan.protocol, data_stem(options.data), str(plan.budget).replace("%", "pct"), suffix]
    return results_folder(options.run).path / "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Trained:
    """One finished run: what it began with, its folder, its score, its page."""

    start: Start
    config: SupervisedConfig
    folder: RunFolder
    score: dict[str, Any]
    page: Path


def train(options: TrainedOptions, config: SupervisedConfig, out: Path, console: Console) -> Trained | None:
    """Train one run, or find it finished; None where a signal stopped it (everything is saved)."""
    folder = RunFolder(out)
    outcome = train_supervised(config, start_encoder(config), build, folder, console)
    if outcome.kind == "stopped":
        console.print(
            f"stopped by {outcome.signal} at step {outcome.step}, all saved; the same command resumes", highlight=False
        )
        return None
    page = write_supervised_report(folder)
    return Trained(config.start, config, folder, final_score(folder), page)


def train_with_floor(options: TrainedOptions, plan: Plan, console: Console, suffix: str = "") -> list[Trained] | None:
    """The run from the pre-trained encoder, and with `--floors` the one from its random start first; None: stopped."""
    open_encoder(options.run)  # what does not exist is refused before anything is trained
    out = options.out or default_out(options, plan, suffix)
    starts: list[Start] = ["random", "pretrained"] if options.floors else ["pretrained"]
    found = []
    for start in starts:
        config = resolve(options, plan, start)
        describe(config, out if start == "pretrained" else beside(out), console)
        trained = train(options, config, out if start == "pretrained" else beside(out), console)
        if trained is None:
            return None
        found.append(trained)
        record = record_result(
            options, plan.protocol, start, trained.score, config.as_dict() | {"folder": str(trained.folder.path)}
        )
        if options.json:
            print_json(record)
    return found


def beside(out: Path) -> Path:
    """The folder of the same run from the random start."""
    return out.with_name(f"{out.name}-random-start")


def describe(config: SupervisedConfig, out: Path, console: Console) -> None:
    """Print what is about to happen."""
    training, optimizer = config.training, config.settings.optimizer
    rows = {
        "encoder": f"{config.encoder}, {'as pre-trained' if config.start == 'pretrained' else 'at its random start'}",
        "data": config.data + (f", {config.budget} of the labels" if str(config.budget) else ""),
        "training": f"{training.epochs:g} epochs, batches of {training.batch_size}, "
        f"on {choose_device(training.device)}, {training.workers} workers",
        "learning rate": f"{optimizer.peak(training.batch_size):.3g}",
        "augmentation": _augmentation(config.settings),
        "out": str(out),
    }
    for name, value in rows.items():
        console.print(f"{name:<13} {value}", highlight=False, markup=False)


def _augmentation(settings: Settings) -> str:
    """What is done to the train images, in words."""
    if not isinstance(settings, ClassifierConfig):
        return "crops of many scales, flips" + (", colours" if isinstance(settings, SegmentationConfig) else "")
    found = ["crops", "flips"]
    if settings.randaugment is not None:
        found.append(settings.randaugment)
    for name in ("erasing", "mixup", "cutmix"):
        value = vars(settings)[name]
        if value:
            found.append(f"{name} {value:g}")
    return ", ".join(found)


def finish(command: TrainedOptions, plan: Plan, more: Callable[[Trained, Console], None] | None = None) -> int:
    """Train, record, print the scores, and what `more` has to say of the pre-trained one; the exit code."""
    console = Console(soft_wrap=True, stderr=command.json)
    runs = train_with_floor(command, plan, console)
    if runs is None:
        return STOPPED
    if not command.json:
        print_scores(command, plan, runs, console)
        if more is not None:
            more(runs[-1], console)
    return 0


def print_scores(options: TrainedOptions, plan: Plan, runs: Sequence[Trained], console: Console) -> None:
    """The table of one or two runs, and whether the pre-trained one is better beyond the noise."""
    what, _, _ = headline(runs[0].score)
    n = runs[0].score["n"]
    console.print(f"{plan.protocol} of {options.run} on {options.data}: {n} test images", highlight=False, markup=False)
    table = plain_table("network", f"{what} %", "95 % interval")
    intervals = {}
    for run in runs:
        _, value, interval = headline(run.score)
        table.add_row(
            NETWORKS[run.start], f"{value:.1f}", "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
        )
        intervals[run.start] = (value, interval)
    console.print(table)
    if len(intervals) == 2:
        (value, own), (floor, other) = intervals["pretrained"], intervals["random"]
        if own is not None and other is not None:
            noise = interval_noise(own, other)
            console.print(f"pre-trained {gap_sentence(value - floor, noise, NETWORKS['random'])}", highlight=False)
    last = runs[-1]
    console.print(
        f"model:  {next(iter(last.folder.path.glob('*.safetensors')))}\nreport: {last.page}",
        highlight=False,
        markup=False,
    )


PREFIX = tyro.conf.arg(name="task")
"""Every field of the task's settings is an option --task.FIELD."""
