"""Results of any evaluation, as rows of one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unmask.report.curves import EVALUATIONS, NETWORKS
from unmask.report.headline import has_headline, headline
from unmask.report.log import Record
from unmask.report.text import DASH, interval

MEASURES = {
    "rankme": "RankMe",
    "alpha_req": "alpha-ReQ",
    "lidar": "LiDAR",
    "uniformity": "uniformity",
    "alignment": "alignment",
    "feature_std": "feature spread",
}


@dataclass(frozen=True)
class Row:
    """One figure: which evaluation of which network, what it is, its value and its 95 % interval as words."""

    evaluation: str
    network: str
    figure: str
    value: str
    interval: str


def rows_of(record: Record) -> list[Row]:
    """The figures that sum up one evaluation in a log; several where no one figure does."""
    score = record["score"]
    name = EVALUATIONS.get(str(record["name"]), str(record["name"]))
    network = NETWORKS.get(str(record["network"]), str(record["network"]))

    def row(figure: str, value: float | None, within: Sequence[float] | None) -> Row:
        shown = DASH if value is None else f"{value:.1f}"
        return Row(name, network, figure, shown, DASH if within is None else interval(within[0], within[1]))

    if has_headline(record):
        figure, value, within = headline(score)
        return [row(f"{figure} %", value, within)]
    if record["name"] == "fewshot":
        spread = score["top1"] or {"mean": None, "interval": None}
        return [row(f"{score['budget']}, {score['classifier']}, top-1 %", spread["mean"], spread["interval"])]
    if record["name"] == "robustness":
        found = [row("mean top-1 % under corruption", score["mean"], None)]
        if score.get("mce") is not None:
            found.append(row("mCE %", score["mce"], None))
        return found
    if record["name"] == "certified":
        middle = list(zip(score["radii"], score["accuracy"], score["intervals"], strict=True))[:3]
        return [row(f"certified at radius {radius:g}, %", value, within) for radius, value, within in middle]
    return [_plain(name, network, key, score) for key in MEASURES if key in score]


def _plain(name: str, network: str, key: str, score: Mapping[str, Any]) -> Row:
    value = score[key]
    return Row(name, network, MEASURES[key], DASH if value is None else f"{value:.3g}", DASH)


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [("evaluation", "network", "figure", "value", "95 % interval"), ("---",) * 5]
    lines += [(row.evaluation, row.network, row.figure, row.value, row.interval) for row in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
