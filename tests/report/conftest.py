"""A small run to report on: a log with every kind of line, pictures of every kind, and hostile names."""

from __future__ import annotations

import pytest
import torch

from unmask.report import (
    Figure,
    Page,
    accuracies,
    attention_sheet,
    evaluation_table,
    health_table,
    learning_charts,
    left_out_table,
    neighbour_sheet,
    pick_queries,
    reconstruction_sheet,
    run_facts,
    run_warnings,
    similarity_sheet,
)
from unmask.report.log import Record

HOSTILE = (
    """<script>alert("1")</script><img src=x onerror='alert(2)'>&amp;"><svg onload=alert(3)>"""
    "javascript:alert(4) --></style>\u202egnp.exe\u2067"
)


@pytest.fixture(scope="session")
def records() -> list[Record]:
    """Twenty steps with two losses, two evaluations of three networks, four looks at the health."""
    made: list[Record] = []
    for step in range(20):
        made.append(
            {
                "kind": "step",
                "step": step,
                "epoch": step / 10,
                "time": 30.0 * step,
                "loss": 5.0 / (step + 1),
                "losses": {"contrast": 4.0 / (step + 1), "reconstruction": 1.0 / (step + 1)},
                "lr": 1e-3 * (20 - step) / 20,
                "grad_norm": 1.0 + step % 3,
                "images_per_second": 100.0 + step,
            }
        )
    for name, low in (("knn", 40.0), ("linear", 50.0)):
        for network, step, top1 in (
            ("random", 0, low),
            ("pixels", 0, low + 8),
            ("pretrained", 10, low + 5),
            ("pretrained", 19, low + 15.25),
        ):
            score = {
                "top1": top1,
                "top5": None,
                "mean_class": top1 - 2,
                "interval": [top1 - 3, top1 + 3],
                "n": 500,
            }
            made.append(
                {
                    "kind": "evaluation",
                    "step": step,
                    "epoch": step / 10,
                    "name": name,
                    "network": network,
                    "score": score,
                }
            )
    for step in (0, 5, 10, 15):
        figures = {
            "feature_std": 0.1 + step / 50,
            "effective_rank": 4.0 + step,
            "positive_similarity": step / 20,
            "negative_similarity": -step / 40,
        }
        warnings = ["The features are narrow: try a longer warm-up."] if step in (5, 10) else []
        made.append({"kind": "health", "step": step, "epoch": step / 10, "figures": figures, "warnings": warnings})
    return made


@pytest.fixture(scope="session")
def page(records: list[Record]) -> Page:
    """The run's page, with a hostile string wherever a user's text goes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 32, 32, generator=generator)
    mask = torch.arange(16).expand(2, 16) % 2 == 0
    probability = torch.rand(2, 16, 16, generator=generator).softmax(dim=-1)
    labels = [HOSTILE, "cat"]
    neighbours = neighbour_sheet(
        images,
        images[:, None].expand(2, 3, 3, 32, 32),
        query_labels=labels,
        neighbour_labels=[[HOSTILE, "cat", "a long-label"]] * 2,
    )
    queries = pick_queries(images, mask, (4, 4), 3)
    attention = torch.rand(2, 6, 16, generator=generator)
    broken: list[Record] = [
        {"kind": "left out", "step": 7, "number": 7, "reason": f"loss {HOSTILE} is nan, samples {HOSTILE}"},
        {"kind": "spike", "step": 9, "loss": 8.0, "warning": f"the loss jumped{HOSTILE}"},
    ]
    return Page(
        run=HOSTILE,
        method=HOSTILE,
        idea=HOSTILE,
        encoder=HOSTILE,
        data=HOSTILE,
        verdict=HOSTILE,
        accuracies=accuracies(records),
        facts=run_facts(records, 123456),
        warnings=(*run_warnings([*records, *broken]), HOSTILE),
        charts=learning_charts([*records, {"kind": "step", "step": 20, "loss": 1.0, "losses": {HOSTILE: 1.0}}]),
        figures=[
            Figure(title="Filled in", sheets={"": reconstruction_sheet(images, images, mask, (4, 4))}),
            Figure(
                title=HOSTILE,
                sheets={"": similarity_sheet(images, images, mask, probability, queries, (4, 4))},
            ),
            Figure(title="Attention", sheets={"": attention_sheet(images, attention, (4, 4))}),
            Figure(title="Nearest", sheets={HOSTILE: neighbours, "Pre-trained": neighbours}),
        ],
        tables=[evaluation_table(records), health_table(records), left_out_table(broken)],
        config={HOSTILE: HOSTILE, "encoder": {"name": HOSTILE, "rates": [0.1, None, True]}},
        bad_files=[f"{number}{HOSTILE}.jpg" for number in range(60)],
        versions={"unmask": HOSTILE},
    )
