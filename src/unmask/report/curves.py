"""From the log of a run to its charts: losses, learning rate, gradients, accuracy, health."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from unmask.report.charts import Chart, Point, line_chart
from unmask.report.headline import headline, scored
from unmask.report.log import Record, of_kind

EVALUATIONS = {
    "knn": "k-nearest-neighbour accuracy",
    "linear": "Linear accuracy",
    "full-linear": "Linear accuracy, full protocol",
    "finetune": "Fine-tuned accuracy",
    "partial": "Accuracy, last blocks trained",
    "attentive": "Attentive probe's accuracy",
    "certified": "Accuracy of the classifier trained against noise",
    "segment": "Segmentation",
    "detect": "Detection",
}
FROZEN = ("knn", "linear", "full-linear")
NETWORKS = {"pretrained": "pre-trained", "random": "random start", "pixels": "raw pixels"}


def learning_charts(records: list[Record]) -> tuple[Chart, ...]:
    """Every chart that the log has the figures for, in the order in which one reads them."""
    steps = of_kind(records, "step")
    return (
        *_loss_charts(steps),
        *_optimiser_charts(steps),
        *accuracy_charts(records),
        *health_charts(records),
    )


def _loss_charts(steps: list[Record]) -> list[Chart]:
    names = list(dict.fromkeys(name for record in steps for name in record.get("losses", {})))
    total = points_of((record["step"], record.get("loss")) for record in steps)
    charts: list[Chart] = []
    if len(names) != 1:
        charts += _over_steps(
            "Loss",
            total,
            "loss",
            "The sum that training makes smaller: it should fall, steeply at first, then slowly.",
        )
    for name in names:
        points = points_of((record["step"], record.get("losses", {}).get(name)) for record in steps)
        words = "The whole loss of this method." if len(names) == 1 else f"The part of the loss called {name}."
        charts += _over_steps(f"Loss: {name}", points, "loss", f"{words} The faint line is what was logged.")
    return charts


def _optimiser_charts(steps: list[Record]) -> list[Chart]:
    rate = points_of((record["step"], record.get("lr")) for record in steps)
    norm = points_of((record["step"], record.get("grad_norm")) for record in steps)
    return [
        *_over_steps("Learning rate", rate, "learning rate", "How large the steps are: a warm-up, then a slow end.", 1),
        *_over_steps(
            "Gradient norm",
            norm,
            "norm",
            "How hard the loss pulls. Single spikes are harmless, a steady climb is not.",
        ),
    ]


def accuracy_charts(records: list[Record]) -> list[Chart]:
    """Accuracy over epochs, one chart an evaluation that was made at least twice, with its 95 % interval."""
    evaluations = scored(records)
    charts: list[Chart] = []
    for name in dict.fromkeys(record["name"] for record in evaluations):
        made = [record for record in evaluations if record["name"] == name]
        trained = [record for record in made if record["network"] == "pretrained"]
        if len(trained) < 2:
            continue
        label = NETWORKS["pretrained"]
        line = [(float(record["epoch"]), headline(record["score"])[1]) for record in trained]
        band = [
            (float(record["epoch"]), float(low), float(high))
            for record in trained
            for low, high in [record["score"].get("interval") or (math.nan, math.nan)]
        ]
        known = all(math.isfinite(low) for _, low, _ in band)
        floors = {
            NETWORKS[network]: headline(record["score"])[1]
            for network in ("random", "pixels")
            for record in made
            if record["network"] == network
        }
        title = EVALUATIONS.get(name, name)
        svg = line_chart(
            {label: line},
            title=f"{title} over epochs",
            x_label="epoch",
            y_label=f"{headline(trained[0]['score'])[0]}, %",
            bands={label: band} if known else None,
            references=floors,
        )
        if name in FROZEN:
            words = "How well the frozen features tell the classes apart, with its 95 % interval. "
            words += "Training is worth its time where the line is above the dashed ones."
        else:
            words = "The score on the test images, with its 95 % interval. The last one counts: none was chosen by it."
        charts.append(Chart(title=title, svg=svg, caption=words))
    return charts


def health_charts(records: list[Record]) -> list[Chart]:
    """What the loss does not show: spread and rank of the features, similarity of positives and negatives."""
    made = of_kind(records, "health")

    def figure(name: str) -> list[Point]:
        return points_of((record["step"], record.get("figures", {}).get(name)) for record in made)

    charts = [
        *_over_steps(
            "Feature spread",
            figure("feature_std"),
            "standard deviation",
            "How much features differ between images. Near zero all images look the same: collapse.",
            1,
        ),
        *_over_steps(
            "Effective rank",
            figure("effective_rank"),
            "dimensions in use",
            "How many directions the features use. A fall to a few means that most of the width is wasted.",
            1,
        ),
    ]
    pair = {
        name: points
        for name, points in (
            ("positive", figure("positive_similarity")),
            ("negative", figure("negative_similarity")),
        )
        if points
    }
    if pair:
        svg = line_chart(
            pair,
            title="Similarity of positive and negative pairs",
            x_label="step",
            y_label="cosine similarity",
        )
        words = "Pairs that belong together (positive) or do not (negative). The gap should open."
        charts.append(Chart(title="Similarity of pairs", svg=svg, caption=words))
    return charts


def points_of(pairs: Iterable[tuple[float, float | None]]) -> list[Point]:
    """Points whose value was logged; an explicit null counts as not logged."""
    return [(float(x), float(y)) for x, y in pairs if y is not None]


def _over_steps(
    title: str, points: Sequence[Point], y_label: str, caption: str, smooth_over: int | None = None
) -> list[Chart]:
    """No chart without points; where no smoothing is asked for, over a fortieth of the points."""
    if not points:
        return []
    series: Mapping[str, Sequence[Point]] = {title: points}
    finite = [y for _, y in points if math.isfinite(y)]
    svg = line_chart(
        series,
        title=f"{title} over steps",
        x_label="step",
        y_label=y_label,
        smooth_over=max(1, len(points) // 40) if smooth_over is None else smooth_over,
        log_y=bool(finite) and min(finite) > 0 and max(finite) > 300 * min(finite) and smooth_over is None,
    )
    return [Chart(title=title, svg=svg, caption=caption)]
