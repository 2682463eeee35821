"""`unmask evaluate fewshot RUN DATA`: how far a few labels go with frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from unmask.commands.evaluate.features import NAMES, FeatureOptions, is_multilabel
from unmask.commands.evaluate.shared import plain_table, print_json, record_result, settings_of, workers_of
from unmask.commands.parse import parse
from unmask.data.sources import labelled
from unmask.evaluate import Network, few_shots, gain
from unmask.evaluation.fewshot import FewShotConfig, FewShotResult, Spread
from unmask.training.trainer import choose_device


@dataclass(frozen=True, kw_only=True)
class FewShot(FeatureOptions):
    """Tell classifiers of frozen features the classes of a few images only, several times over, beside raw pixels and
    the random start."""

    few: Annotated[FewShotConfig, tyro.conf.arg(name="")] = FewShotConfig()


def run(protocol: str, arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate fewshot`."""
    command = parse(FewShot, arguments, command="evaluate fewshot")
    if is_multilabel(command.data):
        raise ValueError("few labels are of images with one class each; a CSV of several is for the linear probe")
    halves = labelled(command.data)
    console = Console(stderr=True)
    found: dict[Network, tuple[FewShotResult, ...]] = {}

    def say(network: Network) -> None:
        if console.is_terminal:
            console.print(f"[dim]few labels with {NAMES[network]} ...[/dim]", end="\r")

    for network, results in few_shots(
        command.run,
        halves,
        command.few,
        pooling=command.pooling,
        seed=command.seed,
        workers=workers_of(command),
        device=choose_device(command.device),
        floors=command.floors,
        on_start=say,
    ):
        found[network] = results
        for result in results:
            settings = settings_of(command.few) | {"pooling": command.pooling}
            record = record_result(command, "fewshot", network, result.as_dict(), settings)
            if command.json:
                print_json(record)
    if not command.json:
        _print(command, found, images=len(halves[0]))
    return 0


def _print(command: FewShot, found: dict[Network, tuple[FewShotResult, ...]], *, images: int) -> None:
    console = Console(soft_wrap=True)
    trained = found["pretrained"]
    tested = next(result.scores[0].n for result in trained if result.scores)
    draws = "1 draw" if command.few.seeds == 1 else f"{command.few.seeds} draws"
    console.print(
        f"fewshot of {command.run} on {command.data}: labels drawn from {images} training images, {draws} of them, "
        f"{tested} test images",
        highlight=False,
        markup=False,
    )
    floor = found.get("random")
    headers = ["budget", "labels", "top-1 % by", *(NAMES[network] for network in found)]
    if floor is not None:
        headers.append("gain")
    table = plain_table(*headers)
    for place, result in enumerate(trained):
        cells = [result.budget, str(result.labels) if result.scores else "-", result.classifier]
        cells += [_spread(results[place].top1) for results in found.values()]
        if floor is not None:
            cells.append(_gain(result, floor[place]))
        table.add_row(*cells)
    console.print(table)
    for result in trained:
        if result.reason and result.classifier == command.few.classifiers[0]:
            console.print(f"{result.budget}: left out, {result.reason}", highlight=False, markup=False)
    if floor is None:
        return
    if command.few.seeds == 1:
        console.print("one draw says nothing about the spread: draw twice at least (--seeds)", highlight=False)
        return
    floors: tuple[Network, ...] = ("random", "pixels")
    for network in floors:
        console.print(verdict(trained, found[network], NAMES[network]), highlight=False)


def verdict(trained: Sequence[FewShotResult], floor: Sequence[FewShotResult], name: str) -> str:
    """A sentence on whether the encoder is above a floor beyond what the choice of labels can turn round."""
    pairs = list(zip(trained, floor, strict=True))
    gains = {f"{one.budget} by {one.classifier}": gain(one, other) for one, other in pairs}
    found = {row: one.verdict for row, one in gains.items() if one is not None}
    sentence = (
        f"pre-trained is above {name} beyond the spread of the draws (95 %) in "
        f"{sum(word == 'above' for word in found.values())} of {len(found)} rows"
    )
    for word, said in (("below", "below it"), ("within", "within the spread")):
        rows = [row for row, verdict in found.items() if verdict == word]
        if rows:
            sentence += f"; {said}: {', '.join(rows) if len(rows) < len(found) else 'all'}"
    return sentence


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.interval is None:
        return f"{spread.mean:.1f}"
    # The interval is cut at 0 and 100; its longer side is whole.
    half = max(spread.mean - spread.interval[0], spread.interval[1] - spread.mean)
    return f"{spread.mean:.1f} ± {half:.1f}"


def _gain(trained: FewShotResult, floor: FewShotResult) -> str:
    found = gain(trained, floor)
    if found is None:
        return "-"
    return f"{found.mean:+.1f}" + ("" if found.half is None else f" ± {found.half:.1f}")
