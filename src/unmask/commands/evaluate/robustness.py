"""`unmask evaluate robustness RUN DATA`: a classifier on corrupted images, or on sets of images of another kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.text import Text
from typing_extensions import Doc

from unmask.commands.evaluate.classifiers import classifier_path, fingerprint, network_of, read_single_label
from unmask.commands.evaluate.features import is_multilabel
from unmask.commands.evaluate.parts import Parts, PartsStopped
from unmask.commands.evaluate.shared import (
    EvaluationOptions,
    data_stem,
    plain_table,
    print_json,
    record_result,
    results_folder,
    settings_of,
    workers_of,
    write_drawing,
)
from unmask.commands.parse import parse
from unmask.config import structure
from unmask.data.corruption import CORRUPTIONS, rehearse
from unmask.data.pixel_range import in_range
from unmask.data.sources import Source, labelled, open_source
from unmask.data.statistics import first_readable
from unmask.errors import STOPPED
from unmask.evaluation.classifier import Classifier, judge, matched_labels
from unmask.evaluation.kept import KeptParts
from unmask.evaluation.linear import LinearConfig
from unmask.evaluation.metrics import Score
from unmask.evaluation.probe import fit_probe
from unmask.evaluation.robustness import (
    CorruptionScore,
    RobustnessConfig,
    RobustnessScore,
    corruption_folders,
    robustness,
    shifted,
    stored_robustness,
)
from unmask.models.pretrained import open_encoder
from unmask.report.charts import line_chart
from unmask.training.trainer import choose_device

KINDS = {
    "noise": CORRUPTIONS[:3],
    "blur": CORRUPTIONS[3:7],
    "weather": CORRUPTIONS[7:11],
    "digital": CORRUPTIONS[11:],
}
"""The four kinds of the fifteen corruptions. [Hendrycks and Dietterich 2019, figure 1]"""
SMALL = 112
"""Images of a shorter side than this, in pixels, suffer clearly more than the photos that severities are made for."""


@dataclass(frozen=True, kw_only=True)
class Robustness(EvaluationOptions):
    """Score a classifier on DATA's test images under the fifteen common corruptions at five severities, or on sets of
    images of another kind. RUN is a fine-tuned classifier; on an encoder a linear probe of DATA's training images is
    fitted first. The same command again resumes what was stopped."""

    run: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="RUN"),
        Doc("The run folder or file of a classifier or an encoder, or timm:NAME."),
    ]
    shifted: Annotated[
        tuple[Path, ...],
        Doc("Folders of test images with the same classes instead: ImageNet-A, -R, -Sketch, -V2, or your own."),
    ] = ()
    stored: Annotated[
        Path | None,
        Doc("A folder of corrupted images instead, as ImageNet-C: CORRUPTION/SEVERITY/CLASS/IMAGE."),
    ] = None
    images: Annotated[
        int, Doc("At most so many of DATA's test images are corrupted, spread evenly over them; 0: all.")
    ] = 500
    corruptions: Annotated[tuple[str, ...], Doc("Which corruptions.")] = CORRUPTIONS
    severities: Annotated[tuple[int, ...], Doc("Which severities, from 1 to 5.")] = RobustnessConfig.severities
    batch_size: Annotated[int, Doc("Images that the classifier sees at once; it changes no result.")] = 128
    pooling: Annotated[
        Literal["mean", "class"], Doc("Of an encoder's probe: mean of the patches, or the class token.")
    ] = "mean"
    linear: Annotated[LinearConfig, Doc("Knobs of an encoder's probe.")] = LinearConfig()


def run(protocol: str, arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate robustness`."""
    command = parse(Robustness, arguments, command="evaluate robustness")
    if is_multilabel(command.data):
        raise ValueError("robustness is of images with one class each, not of a CSV of several")
    config = RobustnessConfig(
        corruptions=command.corruptions,
        severities=command.severities,
        images=command.images or None,
        batch_size=command.batch_size,
        seed=command.seed,
    )
    sets = {str(folder): open_source(folder) for folder in command.shifted}
    own = not sets and command.stored is None
    train, test = labelled(command.data)
    classifier, settings = _classifier(command, train, test, config if own else None)
    try:
        if own:
            _corrupted(command, config, classifier, test, settings)
        if command.stored is not None:
            _stored(command, config, classifier, test, settings)
        if sets:
            _shifted(command, sets, classifier, test, settings)
    except PartsStopped as stopped:
        Console(soft_wrap=True, stderr=command.json).print(str(stopped), highlight=False, markup=False)
        return STOPPED
    return 0


def _classifier(
    command: Robustness, train: Source, test: Source, config: RobustnessConfig | None
) -> tuple[Classifier, dict[str, Any]]:
    """The classifier that RUN is, or an encoder's probe; and what it depends on, as plain values.

    What cannot be done is refused before the probe is fitted; with `config`, also what is missing for corruptions.
    """
    device = choose_device(command.device)
    made: dict[str, Any] = {"weights": fingerprint(command.run)}
    path = classifier_path(command.run)
    if path is not None:
        finished = read_single_label(path, "robustness").to(device)
        _check(finished.channels, finished.image_size, in_range(test, finished.pixel_range), config)
        matched_labels(finished.classes, test)
        return finished, made
    encoder = open_encoder(command.run).to(device)
    channels = encoder.encoder.config.channels
    _check(channels, encoder.encoder.image_size, in_range(test, encoder.pixel_range), config)
    first_readable(in_range(train, encoder.pixel_range), channels=channels)
    console = Console(stderr=True)
    if console.is_terminal:
        console.print("[dim]fitting a linear probe ...[/dim]", end="\r")
    probe = fit_probe(
        encoder, train, command.linear, command.seed, pooling=command.pooling, workers=workers_of(command)
    )
    made["probe"] = settings_of(command.linear) | {
        "pooling": command.pooling,
        "seed": command.seed,
        "train_images": len(train),
        "lr": probe.lr,
    }
    return probe, made


def _check(channels: int, size: tuple[int, int], test: Source, config: RobustnessConfig | None) -> None:
    if config is not None:
        rehearse(config.corruptions, channels=channels, height=size[0], width=size[1])
    first_readable(test, channels=channels)


def _corrupted(
    command: Robustness, config: RobustnessConfig, classifier: Classifier, test: Source, made: dict[str, Any]
) -> None:
    """DATA's own test images, corrupted while they are read."""
    settings = made | {"data": command.data, "test_images": len(test), "images": config.images, "seed": config.seed}
    asked = [(name, severity) for name in config.corruptions for severity in config.severities]

    def look(done: Sequence[CorruptionScore], on_cell: Callable[[CorruptionScore], None]) -> RobustnessScore:
        return robustness(classifier, test, config, workers=workers_of(command), done=done, on_cell=on_cell)

    score = _resumed(command, settings, asked, look)
    _finish(command, config, score, settings, "robustness.svg", "")
    if min(classifier.image_size) < SMALL and not command.json:
        _say(
            f"note: severities are made for photos of 224 pixels; on {min(classifier.image_size)} they are much "
            "stronger, so compare classifiers of one image size only"
        )


def _stored(
    command: Robustness, config: RobustnessConfig, classifier: Classifier, test: Source, made: dict[str, Any]
) -> None:
    """Corrupted images that lie in a folder, beside DATA's own test images as the clean ones."""
    assert command.stored is not None
    folder = command.stored
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist" if not folder.exists() else f"{folder} is not a folder")
    settings = made | {"stored": str(folder)}
    there = corruption_folders(folder)
    asked = [(name, level) for name in config.corruptions for level in config.severities if (name, level) in there]

    def look(done: Sequence[CorruptionScore], on_cell: Callable[[CorruptionScore], None]) -> RobustnessScore:
        return stored_robustness(
            classifier, folder, config, workers=workers_of(command), clean=test, done=done, on_cell=on_cell
        )

    score = _resumed(command, settings, asked, look)
    _finish(command, config, score, settings, f"stored-{data_stem(str(folder))}.svg", f" stored in {folder}")


def _resumed(
    command: Robustness,
    settings: dict[str, Any],
    asked: Sequence[tuple[str, int]],
    look: Callable[[Sequence[CorruptionScore], Callable[[CorruptionScore], None]], RobustnessScore],
) -> RobustnessScore:
    """What `look` finds, given the cells that an earlier call has kept; every new one is kept at once."""
    kept = KeptParts(_folder(command) / "cells.jsonl", settings)
    done = [cell for cell in map(_cell, kept.read()) if (cell.corruption, cell.severity) in asked]
    with Parts("corruptions", total=len(asked), done=len({(cell.corruption, cell.severity) for cell in done})) as parts:

        def keep(cell: CorruptionScore) -> None:
            kept.add(cell.as_dict())
            parts.advance(f"{cell.corruption} {cell.severity}: {cell.score.top1:.1f} %")

        return look(done, keep)


def _cell(values: dict[str, Any]) -> CorruptionScore:
    score = {name: value for name, value in values.items() if name not in ("corruption", "severity")}
    return CorruptionScore(values["corruption"], values["severity"], structure(score, Score, "score"))


def _folder(command: Robustness) -> Path:
    return results_folder(command.run).path / f"robustness-{data_stem(command.data)}"


def _finish(
    command: Robustness,
    config: RobustnessConfig,
    score: RobustnessScore,
    settings: dict[str, Any],
    drawing: str,
    where: str,
) -> None:
    """Draw, record and print a score under corruptions."""
    path = _folder(command) / drawing
    write_drawing(draw(score), path)
    asked = {"corruptions": config.corruptions, "severities": config.severities, "device": command.device}
    record = record_result(command, "robustness", network_of(command.run), score.as_dict(), settings | asked)
    if command.json:
        print_json(record)
        return
    assert score.clean is not None
    n = score.cells[0].score.n if where else score.clean.n
    kinds = "1 corruption" if len(score.errors) == 1 else f"{len(score.errors)} corruptions"
    each = " each" if where else ""
    _say(f"robustness of {command.run} on {command.data}: {kinds}{where}, {n} test images{each}")
    severities = sorted({cell.severity for cell in score.cells})
    table = plain_table("corruption", "mean top-1 %", *map(str, severities))
    found = {(cell.corruption, cell.severity): cell.score.top1 for cell in score.cells}
    for name, error in score.errors.items():
        row = [found.get((name, severity)) for severity in severities]
        table.add_row(name, f"{100 - error:.1f}", *("-" if value is None else f"{value:.1f}" for value in row))
    over = dict(score.curve)
    table.add_row("all", f"{score.mean:.1f}", *(f"{over[severity]:.1f}" for severity in severities))
    Console(soft_wrap=True).print(table)
    low, high = score.clean.interval
    left = "" if score.relative is None else f", {score.relative:.0f} % of it is left under corruption"
    mce = "" if score.mce is None else f"; mean corruption error {score.mce:.1f} % (AlexNet: 100)"
    _say(f"clean: {score.clean.top1:.1f} % ({low:.1f} to {high:.1f}){left}{mce}")
    _bad_files(score.bad_files)
    _say(f"curve: {path}")


def draw(score: RobustnessScore) -> str:
    """Accuracy over the severity, averaged over all corruptions and over those of each kind, as an `<svg>` element."""
    series: dict[str, list[tuple[float, float]]] = {"all": [(float(level), value) for level, value in score.curve]}
    kinds = {kind: [cell for cell in score.cells if cell.corruption in names] for kind, names in KINDS.items()}
    present = {kind: tuple(cells) for kind, cells in kinds.items() if cells}
    if len(present) > 1:
        for kind, cells in present.items():
            curve = RobustnessScore(score.clean, cells).curve
            series[kind] = [(float(level), value) for level, value in curve]
    return line_chart(
        series,
        title="Accuracy by the severity of corruptions; severity 0 are the clean images",
        x_label="severity of the corruption (0: clean)",
        y_label="top-1, %",
    )


def _shifted(
    command: Robustness, sets: dict[str, Source], classifier: Classifier, test: Source, made: dict[str, Any]
) -> None:
    """Sets of images of another kind, beside DATA's own test images."""
    options: dict[str, Any] = {"batch_size": command.batch_size, "workers": workers_of(command)}
    for source in sets.values():
        matched_labels(classifier.classes, source)  # what does not fit is refused before anything is scored
    every_K = torch.arange(len(classifier.classes))
    clean = judge(classifier, test, matched_labels(classifier.classes, test), every_K, **options)
    table = plain_table("images", "number", "top-1 %", "95 % interval", "classes")
    table.add_row(Text(f"{command.data}, test"), *_figures(clean.score), str(len(classifier.classes)))
    bad_files = list(clean.bad_files)
    for name, source in sets.items():
        found = shifted(classifier, source, **options)
        bad_files += found.bad_files
        score = found.score.as_dict() | {"clean": clean.score.as_dict(), "bad_files": list(found.bad_files)}
        settings = made | {"shifted": name, "device": command.device}
        record = record_result(command, f"shifted {data_stem(name)}", network_of(command.run), score, settings)
        if command.json:
            print_json(record)
        table.add_row(Text(name), *_figures(found.score), str(len(matched_labels(classifier.classes, source).unique())))
    if not command.json:
        _say(f"robustness of {command.run}: only the classes that a set has are chosen from")
        Console(soft_wrap=True).print(table)
        _bad_files(bad_files)


def _figures(score: Score) -> tuple[str, str, str]:
    low, high = score.interval
    return str(score.n), f"{score.top1:.1f}", f"{low:.1f} to {high:.1f}"


def _bad_files(names: Sequence[str]) -> None:
    if names:
        _say(f"{len(names)} {'image' if len(names) == 1 else 'images'} could not be read, for example {names[0]}")


def _say(sentence: str) -> None:
    Console(soft_wrap=True).print(sentence, highlight=False, markup=False)
