"""`unmask evaluate unlabelled RUN DATA`: measures that need no label, of the encoder or of every checkpoint kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.evaluate.features import NAMES
from unmask.commands.evaluate.shared import (
    EvaluationOptions,
    plain_table,
    print_json,
    record_result,
    settings_of,
    workers_of,
)
from unmask.commands.parse import parse
from unmask.data.sources import open_source
from unmask.evaluate import Network, kept_encoders, measured_networks, unlabelled_score
from unmask.evaluation.augmented import ViewConfig
from unmask.evaluation.unlabelled import UnlabelledScore
from unmask.models.pretrained import PretrainedEncoder
from unmask.pretrain import build_method, exported_encoder
from unmask.run_folder import RunFolder
from unmask.training.trainer import choose_device


@dataclass(frozen=True, kw_only=True)
class Unlabelled(EvaluationOptions):
    """Measure without labels how much of its width an encoder uses and what views of one image share, beside the
    random start: to choose a checkpoint where there is no label. DATA may be any images."""

    data: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="DATA"),
        Doc("Images: a folder, a .txt list, a .tar archive, builtin:NAME. Labels are not looked at."),
    ]
    floors: Annotated[bool, Doc("Also measure the random start.")] = True
    pooling: Annotated[
        Literal["mean", "class"], Doc("One feature an image: mean of the patches, or the class token.")
    ] = "mean"
    checkpoints: Annotated[
        bool,
        Doc("Measure every checkpoint that RUN keeps (pretrain --keep-every), one row each; RUN may be unfinished."),
    ] = False
    views: Annotated[ViewConfig, tyro.conf.arg(name="")] = ViewConfig()


@dataclass(frozen=True)
class Measured:
    """One row: what was measured, after how many steps and epochs, and what came out."""

    name: str
    network: Network
    at: tuple[int, float] | None
    score: UnlabelledScore


def run(protocol: str, arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate unlabelled`."""
    command = parse(Unlabelled, arguments, command="evaluate unlabelled")
    source = open_source(command.data)
    device = choose_device(command.device)
    console = Console(stderr=True)
    rows = []
    for name, network, at, encoder in _encoders(command):
        if console.is_terminal:
            console.print(f"[dim]measuring {name} ...[/dim]", end="\r")
        score = unlabelled_score(
            encoder,
            source,
            command.views,
            pooling=command.pooling,
            seed=command.seed,
            workers=workers_of(command),
            device=device,
        )
        rows.append(Measured(name, network, at, score))
        settings = settings_of(command.views) | {"pooling": command.pooling}
        record = record_result(command, "unlabelled", network, score.as_dict(), settings, at)
        if command.json:
            print_json(record)
    if not command.json:
        _print(command, rows)
    return 0


def _encoders(command: Unlabelled) -> Iterator[tuple[str, Network, tuple[int, float] | None, PretrainedEncoder]]:
    """Name, network, step and epoch, and encoder of each row."""
    if not command.checkpoints:
        for network, encoder in measured_networks(command.run, floors=command.floors):
            yield NAMES[network], network, None, encoder
        return
    folder = RunFolder(Path(command.run))
    kept = kept_encoders(folder)
    first = next(kept)  # a run without checkpoints is refused before anything is measured
    if command.floors:
        start = exported_encoder(build_method(folder.config()), f"{command.run} at its random start")
        yield NAMES["random"], "random", (0, 0.0), start
    yield f"step {first.step}", "pretrained", (first.step, first.epoch), first.encoder
    for one in kept:
        yield f"step {one.step}", "pretrained", (one.step, one.epoch), one.encoder


LARGER_IS_BETTER: dict[str, Callable[[UnlabelledScore], float]] = {
    "RankMe": lambda score: score.rankme,
    "LiDAR": lambda score: score.lidar,
}
"""The measures by which the papers choose."""


def _print(command: Unlabelled, rows: Sequence[Measured]) -> None:
    console = Console(soft_wrap=True)
    score = rows[0].score
    console.print(
        f"unlabelled of {command.run} on {command.data}: {score.views} views each of {score.images} images",
        highlight=False,
        markup=False,
    )
    table = plain_table("network", "RankMe", "LiDAR", "alpha-ReQ", "uniformity", "alignment", "spread")
    for row in rows:
        found = row.score
        alpha = "-" if found.alpha_req is None else f"{found.alpha_req:.2f}"
        table.add_row(
            row.name,
            f"{found.rankme:.1f}",
            f"{found.lidar:.1f}",
            alpha,
            f"{found.uniformity:.2f}",
            f"{found.alignment:.2f}",
            f"{found.feature_std:.2f}",
        )
    console.print(table)
    console.print(
        "better: larger RankMe, LiDAR and spread; smaller uniformity and alignment, but alignment alone is best when "
        "all features are one; alpha-ReQ near 1",
        highlight=False,
    )
    trained = [row for row in rows if row.network == "pretrained"]
    if len(trained) > 1:
        chosen = {name: max(trained, key=lambda row: value(row.score)).name for name, value in LARGER_IS_BETTER.items()}
        said = " and ".join(f"{step} by {name}" for name, step in chosen.items())
        console.print(f"best of the {len(trained)} checkpoints: {said}", highlight=False, markup=False)
