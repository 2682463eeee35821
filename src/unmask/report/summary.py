"""From the log of a run to the head and the foot of its page: accuracies, facts, warnings, tables."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Annotated

from typing_extensions import Doc

from unmask.report.curves import EVALUATIONS, NETWORKS
from unmask.report.headline import headline, scored
from unmask.report.log import Record, of_kind
from unmask.report.text import DASH, count, duration, interval, number, percent

# As many rows of a table as one still reads; they are taken evenly over the run, the last one always.
ROWS_AT_MOST = 24


@dataclass(frozen=True, kw_only=True)
class Score:
    """An accuracy with its 95 % interval, all in percent."""

    value: Annotated[float, Doc("The one figure of the evaluation, in percent.")]
    low: Annotated[float, Doc("Lower end of the 95 % interval.")]
    high: Annotated[float, Doc("Upper end of the 95 % interval.")]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One evaluation of what was there before training, what is there after, and the floor of raw pixels."""

    name: Annotated[str, Doc("Name of the evaluation.")]
    pretrained: Annotated[Score | None, Doc("The trained encoder.")] = None
    random: Annotated[Score | None, Doc("The same encoder at its random start.")] = None
    pixels: Annotated[Score | None, Doc("No encoder at all: raw pixels.")] = None


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One figure with its name."""

    name: Annotated[str, Doc("What it is.")]
    value: Annotated[str, Doc("The figure with its unit.")]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A plain table; cells that hold figures are words already."""

    title: Annotated[str, Doc("Heading.")]
    headers: Annotated[tuple[str, ...], Doc("One a column.")]
    rows: Annotated[tuple[tuple[str, ...], ...], Doc("As many cells in each as there are headers.")]


def accuracies(records: list[Record]) -> tuple[Accuracy, ...]:
    """For each evaluation in the log the last score of each network."""
    latest: dict[str, dict[str, Score]] = {}
    for record in scored(records):
        latest.setdefault(record["name"], {})[record["network"]] = _score(record)
    return tuple(
        Accuracy(
            name=EVALUATIONS.get(name, name),
            pretrained=scores.get("pretrained"),
            random=scores.get("random"),
            pixels=scores.get("pixels"),
        )
        for name, scores in latest.items()
    )


def run_facts(records: list[Record], images_seen: int) -> tuple[Fact, ...]:
    """Images seen, epochs, wall time and the median speed, as far as the log tells them."""
    facts = [Fact(name="images seen", value=count(images_seen))]
    steps = of_kind(records, "step")
    if steps:
        last = steps[-1]
        facts.append(Fact(name="steps", value=count(int(last["step"]))))
        if "epoch" in last:
            facts.append(Fact(name="epochs", value=f"{float(last['epoch']):.4g}"))
        if "time" in last:
            facts.append(Fact(name="wall time", value=duration(float(last["time"]))))
        speeds = [float(record["images_per_second"]) for record in steps if record.get("images_per_second")]
        if speeds:
            speed = median(speeds)
            facts.append(Fact(name="images a second", value=count(round(speed)) if speed >= 10 else number(speed)))
    return tuple(facts)


def run_warnings(records: list[Record]) -> tuple[str, ...]:
    """What went wrong, each sentence once, with the steps at which it was seen."""
    seen: dict[str, list[int]] = {}
    for record in of_kind(records, "health"):
        for sentence in record.get("warnings", []):
            seen.setdefault(str(sentence), []).append(int(record.get("step", 0)))
    found = [f"{sentence} ({_when(steps)})" for sentence, steps in seen.items()]
    found += _jumps(of_kind(records, "spike"))
    found += _left_out(_steps_left_out(records))
    damaged = sum(record.get("kind") == "damaged" for record in records)
    if damaged:
        lines = "One line" if damaged == 1 else f"{damaged} lines"
        found.append(f"{lines} of the log could not be read: a run that was killed while writing leaves such lines.")
    return tuple(found)


def _jumps(jumps: list[Record]) -> list[str]:
    """One sentence for all jumps of the loss: the highest one's."""
    if not jumps:
        return []
    steps = [int(record["step"]) for record in jumps]
    highest = max(jumps, key=lambda record: float(record.get("loss") or 0))
    others = ""
    if len(jumps) > 1:
        first, last = count(steps[0]), count(steps[-1])
        others = f" (the highest of {len(jumps)} jumps, the first at step {first}, the last at step {last})"
    return [f"At step {count(int(highest['step']))} {highest['warning']}{others}."]


def _steps_left_out(records: list[Record]) -> list[Record]:
    """The steps that were left out, by their numbers; one that was left out again after a restart counts once."""
    latest = {int(record["number"]): record for record in records if record.get("kind") == "left out"}
    return [latest[number] for number in sorted(latest)]


def _left_out(steps: list[Record]) -> list[str]:
    """One sentence for each figure that was not finite, and one for each time that earlier weights came back."""
    numbers: dict[str, list[int]] = {}
    for record in steps:
        what, _ = _what_and_samples(record)
        numbers.setdefault(what, []).append(int(record["number"]))
    returns = [
        f"After step {count(int(record['number']))} the weights of step {count(int(record['back']))} came back."
        for record in steps
        if "back" in record
    ]
    return [
        f"{'One step was' if len(found) == 1 else f'{count(len(found))} steps were'} left out of the training, "
        f"because {what} ({_when(found)}). If there are many, try a lower --lr, clipping, or --precision fp32."
        for what, found in numbers.items()
    ] + returns


def _what_and_samples(record: Record) -> tuple[str, str]:
    """Why a step was left out, and the places of its images in the data."""
    what, _, samples = str(record["reason"]).partition(", samples ")
    return what, samples


def left_out_table(records: list[Record]) -> Table:
    """Every step that was left out, evenly thinned, with the places of its images in the data."""
    steps = _steps_left_out(records)
    rows = [(count(int(record["number"])), *_what_and_samples(record)) for record in _thinned(steps)]
    title = f"Steps left out ({count(len(steps))})"
    return Table(title=title, headers=("step", "because", "images, by their place in the data"), rows=tuple(rows))


def evaluation_table(records: list[Record]) -> Table:
    """Every evaluation in the log, in order, with all its scores."""
    rows: list[tuple[str, ...]] = [
        (
            EVALUATIONS.get(str(record["name"]), str(record["name"])),
            NETWORKS.get(str(record["network"]), str(record["network"])),
            number(float(record.get("epoch", 0))),
            percent(score.value),
            interval(score.low, score.high),
            *(_share_or_dash(record["score"].get(key)) for key in ("top5", "mean_class")),
            count(int(record["score"].get("n", 0))),
        )
        for record in scored(records)
        for score in (_score(record),)
    ]
    headers = (
        "evaluation",
        "network",
        "epoch",
        "top 1",
        "95 % interval",
        "top 5",
        "mean of classes",
        "images",
    )
    return Table(title="Evaluations", headers=headers, rows=tuple(rows))


def health_table(records: list[Record]) -> Table:
    """The health figures over the run, evenly thinned."""
    made = of_kind(records, "health")
    names = list(dict.fromkeys(name for record in made for name in record.get("figures", {})))
    rows: list[tuple[str, ...]] = [
        (
            count(int(record.get("step", 0))),
            *(_number_or_dash(record.get("figures", {}).get(name)) for name in names),
        )
        for record in _thinned(made)
    ]
    headers = ("step", *(name.replace("_", " ") for name in names))
    return Table(title="Health", headers=headers, rows=tuple(rows))


def _thinned(records: list[Record]) -> list[Record]:
    """As many as a table holds, evenly taken, the last one always."""
    every = max(1, -(-len(records) // ROWS_AT_MOST))
    return records[::-1][::every][::-1]


def _score(record: Record) -> Score:
    _, value, found = headline(record["score"])
    low, high = found or (value, value)
    return Score(value=value, low=float(low), high=float(high))


def _share_or_dash(value: float | None) -> str:
    return DASH if value is None else percent(float(value))


def _number_or_dash(value: float | None) -> str:
    return DASH if value is None else number(float(value))


def _when(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"step {count(steps[0])}"
    return f"{len(steps)} times, first at step {count(steps[0])}, last at step {count(steps[-1])}"
