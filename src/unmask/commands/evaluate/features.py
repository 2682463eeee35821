"""`unmask evaluate {knn,linear} RUN DATA`: frozen features, beside raw pixels and the random start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from rich.console import Console
from typing_extensions import Doc

from unmask.commands.evaluate.shared import (
    EvaluationOptions,
    plain_table,
    print_json,
    record_result,
    settings_of,
    workers_of,
)
from unmask.commands.parse import parse
from unmask.data.multilabel import open_multilabel
from unmask.data.sources import labelled
from unmask.evaluate import Evaluation, EvaluationSettings, Network, Protocol, compare, evaluate
from unmask.evaluation.full_linear import FullLinearConfig
from unmask.evaluation.knn import KnnConfig
from unmask.evaluation.linear import LinearConfig
from unmask.evaluation.multilabel import MultiLabelScore
from unmask.training.trainer import choose_device

NAMES: dict[Network, str] = {"pixels": "raw pixels", "random": "random start", "pretrained": "pre-trained"}


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(EvaluationOptions):
    """What both evaluations of frozen features may be told."""

    floors: Annotated[bool, Doc("Also score raw pixels and the random start.")] = True
    pooling: Annotated[
        Literal["mean", "class"], Doc("One feature an image: mean of the patches, or the class token.")
    ] = "mean"


@dataclass(frozen=True, kw_only=True)
class Knn(FeatureOptions):
    """Weighted nearest neighbours on frozen features, beside raw pixels and the random start."""

    knn: Annotated[KnnConfig, Doc("Knobs of kNN.")] = KnnConfig()


@dataclass(frozen=True, kw_only=True)
class Linear(FeatureOptions):
    """A linear probe on frozen features, beside raw pixels and the random start. DATA may be a CSV of images with
    several labels each (image,labels)."""

    full: Annotated[
        bool,
        Doc("MAE's full protocol (LARS, augmented crops every epoch) instead of a sweep on cached features."),
    ] = False
    linear: Annotated[LinearConfig, Doc("Knobs of the quick linear probe.")] = LinearConfig()
    full_linear: Annotated[FullLinearConfig, Doc("Knobs of the full linear probe.")] = FullLinearConfig()


def run(protocol: str, arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate knn` and `unmask evaluate linear`."""
    if protocol == "knn":
        nearest = parse(Knn, arguments, command="evaluate knn")
        return _evaluate(nearest, "knn", LinearConfig(), FullLinearConfig(), nearest.knn)
    probe = parse(Linear, arguments, command="evaluate linear")
    if probe.full and is_multilabel(probe.data):
        raise ValueError("--full is for images with one class each; leave it out for a CSV")
    return _evaluate(probe, "full-linear" if probe.full else "linear", probe.linear, probe.full_linear, KnnConfig())


def is_multilabel(data: str) -> bool:
    """Whether DATA is a table of images with several classes each."""
    return data.lower().endswith(".csv")


def _evaluate(
    command: FeatureOptions, protocol: Protocol, linear: LinearConfig, full_linear: FullLinearConfig, knn: KnnConfig
) -> int:
    if is_multilabel(command.data) and protocol == "knn":
        raise ValueError("kNN is for images with one class each; a CSV of several is for the linear probe")
    halves = open_multilabel(command.data) if is_multilabel(command.data) else labelled(command.data)
    settings = EvaluationSettings(
        protocol=protocol,
        pooling=command.pooling,
        knn=knn,
        linear=linear,
        full_linear=full_linear,
        seed=command.seed,
        workers=workers_of(command),
        device=choose_device(command.device),
    )
    used = {"knn": knn, "linear": linear, "full-linear": full_linear}[protocol]
    console = Console(stderr=True)
    found: dict[Network, Evaluation] = {}

    def say(network: Network) -> None:
        if console.is_terminal:
            console.print(f"[dim]{protocol} of {NAMES[network]} ...[/dim]", end="\r")

    for evaluation in evaluate(command.run, halves, settings, floors=command.floors, on_start=say):
        found[evaluation.network] = evaluation
        record = record_result(
            command,
            protocol,
            evaluation.network,
            evaluation.score.as_dict(),
            settings_of(used) | {"pooling": command.pooling},
        )
        if command.json:
            print_json(record)
    if not command.json:
        _print(command, protocol, found, train=len(halves[0]))
    return 0


def _print(command: FeatureOptions, protocol: Protocol, found: dict[Network, Evaluation], *, train: int) -> None:
    console = Console(soft_wrap=True)
    scores = {network: evaluation.score for network, evaluation in found.items()}
    trained = scores["pretrained"]
    console.print(
        f"{protocol} of {command.run} on {command.data}: {train} training images, {trained.n} test images",
        highlight=False,
        markup=False,
    )
    if isinstance(trained, MultiLabelScore):
        table = plain_table("network", "mAP %", "95 % interval", "micro F1 %", "macro F1 %")
    else:
        table = plain_table("network", "top-1 %", "95 % interval", "top-5 %", "mean class %")
    for network, score in scores.items():
        low, high = score.interval
        if isinstance(score, MultiLabelScore):
            figures: tuple[float | str | None, ...] = (
                score.mean_ap,
                f"{low:.1f} to {high:.1f}",
                score.micro_f1,
                score.macro_f1,
            )
        else:
            figures = (score.top1, f"{low:.1f} to {high:.1f}", score.top5, score.mean_class)
        table.add_row(NAMES[network], *map(_cell, figures))
    console.print(table)
    for network in ("random", "pixels"):
        if network in scores:
            console.print(f"pre-trained {compare(trained, scores[network], NAMES[network])}", highlight=False)


def _cell(figure: float | str | None) -> str:
    if figure is None:
        return "-"
    return figure if isinstance(figure, str) else f"{figure:.1f}"
