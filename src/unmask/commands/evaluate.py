"""`unmask evaluate {knn,linear,full-linear} RUN DATA`: what is the encoder worth?"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.data.sources import labelled
from unmask.defaults import default_workers
from unmask.evaluate import Evaluation, EvaluationSettings, Network, compare, evaluate
from unmask.evaluation.full_linear import FullLinearConfig
from unmask.evaluation.knn import KnnConfig
from unmask.evaluation.linear import LinearConfig
from unmask.run_folder import RunFolder
from unmask.training.trainer import choose_device

NAMES: dict[Network, str] = {"pixels": "raw pixels", "random": "random start", "pretrained": "pre-trained"}


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score an encoder on labelled images, beside raw pixels and the same encoder at its random start."""

    protocol: Annotated[
        tyro.conf.Positional[Literal["knn", "linear"]],
        Doc("knn: weighted nearest neighbours. linear: a linear probe."),
    ]
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
    full: Annotated[
        bool,
        Doc("linear: MAE's full protocol (LARS, augmented crops every epoch) instead of a sweep on cached features."),
    ] = False
    floors: Annotated[bool, Doc("Also score raw pixels and the random start.")] = True
    pooling: Annotated[
        Literal["mean", "class"], Doc("One feature an image: mean of the patches, or the class token.")
    ] = "mean"
    knn: Annotated[KnnConfig, Doc("Knobs of kNN.")] = KnnConfig()
    linear: Annotated[LinearConfig, Doc("Knobs of the quick linear probe.")] = LinearConfig()
    full_linear: Annotated[FullLinearConfig, Doc("Knobs of the full linear probe.")] = FullLinearConfig()
    seed: Annotated[int, Doc("Seed of the probe.")] = 0
    device: Annotated[str, Doc("cpu, cuda, cuda:1, mps; auto takes the best there is.")] = "auto"
    workers: Annotated[int | None, Doc("Processes that decode images. Default: one a processor, at most 8.")] = None
    json: Annotated[bool, Doc("Print JSON lines instead of a table.")] = False


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate`."""
    command = parse(Evaluate, arguments, command="evaluate")
    halves = labelled(command.data)
    if command.full and command.protocol != "linear":
        raise ValueError("--full belongs to the linear probe")
    settings = EvaluationSettings(
        protocol="full-linear" if command.full else command.protocol,
        pooling=command.pooling,
        knn=command.knn,
        linear=command.linear,
        full_linear=command.full_linear,
        seed=command.seed,
        workers=default_workers() if command.workers is None else command.workers,
        device=choose_device(command.device),
    )
    console = Console(stderr=True)
    scores: dict[Network, Evaluation] = {}

    def say(network: Network) -> None:
        if console.is_terminal:
            console.print(f"[dim]{settings.protocol} of {NAMES[network]} ...[/dim]", end="\r")

    for evaluation in evaluate(command.run, halves, settings, floors=command.floors, on_start=say):
        scores[evaluation.network] = evaluation
        _log(command, evaluation)
        if command.json:
            json.dump(_record(command, evaluation), sys.stdout)
            sys.stdout.write("\n")
    if not command.json:
        _print(command, scores, train=len(halves[0]))
    return 0


def _record(command: Evaluate, evaluation: Evaluation) -> dict[str, object]:
    """A result with everything needed to repeat it."""
    return {
        "name": evaluation.protocol,
        "network": evaluation.network,
        "score": evaluation.score.as_dict(),
        "run": command.run,
        "data": command.data,
        "pooling": command.pooling,
        "seed": command.seed,
    }


def _log(command: Evaluate, evaluation: Evaluation) -> None:
    """Add the result to the run's log, where the run's report finds it."""
    folder = RunFolder(Path(command.run))
    if not folder.config_file.exists():
        return
    step, epoch = folder.last_step() if evaluation.network == "pretrained" else (0, 0.0)
    record = {"kind": "evaluation", "step": step, "epoch": epoch} | _record(command, evaluation)
    folder.append(record)


def _print(command: Evaluate, scores: dict[Network, Evaluation], *, train: int) -> None:
    console = Console(soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("network", "top-1 %", "95 % interval", "top-5 %", "mean class %"):
        table.add_column(header, justify="left" if header == "network" else "right")
    for network, evaluation in scores.items():
        score = evaluation.score
        top5 = "-" if score.top5 is None else f"{score.top5:.1f}"
        low, high = score.interval
        table.add_row(NAMES[network], f"{score.top1:.1f}", f"{low:.1f} to {high:.1f}", top5, f"{score.mean_class:.1f}")
    trained = scores["pretrained"]
    console.print(
        f"{trained.protocol} of {command.run} on {command.data}: {train} training images, "
        f"{trained.score.n} test images",
        highlight=False,
        markup=False,
    )
    console.print(table)
    for network in ("random", "pixels"):
        if network in scores:
            sentence = compare(trained.score, scores[network].score, NAMES[network])
            console.print(f"pre-trained {sentence}", highlight=False)
