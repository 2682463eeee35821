"""A training step on the CPU in float32: ours, through the Trainer as users get it, against the authors' own way.

Both sides (`benchmarks/plain/steps.py` is theirs, restated) start from the same weights and see the same views; making
views is left out. Each side runs in a process of its own; they take turns, one step each, and never run at the same
time. Losses of the first three steps must agree to 1e-5, or there is no result. "Matrix share" is the time that the
step's own matrix products take when they are run alone, on tensors that lie ready, by the time of the step: what is
left is everything else (norms, activations, softmax, optimizer, target). Ratios are of processor seconds, medians over
the rounds; "quickest by quickest" compares the best round of each side, which a machine that slows down now and then
disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from benchmarks.harness import ROOT, Table, facts, paired_ratio, publish
from benchmarks.plain.steps import PlainStep
from benchmarks.products import products_alone
from unmask.data.batch import Batch
from unmask.methods import find_method
from unmask.methods.base import Method
from unmask.training.trainer import Trainer, TrainingConfig
from unmask.views import Views

SEED = 0
RATE = 1e-5
TOLERANCE = 1e-5
WARM_UP = 2
"""Rounds that are not counted: a process takes its memory from the system, page by page, in its first steps."""
COMPARED = 3
"""Steps whose losses must agree. Rounding grows with each, the more the higher the rate: AdamW divides small gradients
by their own size, and batch norm over a few images does the same."""


def build(name: str, encoder: str, batch_size: int, *, side: int = 224) -> tuple[Method[Any], Batch, Views]:
    """A method at its random start with a constant learning rate, and one batch of `side` pixels with its views."""
    torch.manual_seed(SEED)
    cls = find_method(name)
    settings = cls.Config().for_images(side, side)
    optimizer = replace(settings.optimizer, lr=RATE, lr_batch=None, warmup_epochs=0, decay="linear", min_lr=RATE)
    method = cls(replace(settings, encoder=replace(settings.encoder, name=encoder), optimizer=optimizer))
    (crop,) = method.crops
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(batch_size, 3, 14, 14, generator=generator) * 255
    pixels = torch.nn.functional.interpolate(coarse, size=(crop.height, crop.width), mode="bicubic")
    batch = Batch.of(pixels.clamp(0, 255).to(torch.uint8), seed=SEED)
    return method, batch, method.make_views(batch)


class _GivenViews:
    """Stands for `make_views` where the views are made already."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __call__(self, batch: Batch) -> Views:
        return self.views


def our_step(method: Method[Any], batch: Batch, views: Views, *, compiled: bool) -> Callable[[], float]:
    """One step of ours on the given views; the loss."""
    method.make_views = _GivenViews(views)  # type: ignore[method-assign]
    training = TrainingConfig(batch_size=batch.size, workers=0, device="cpu", compile=compiled)
    trainer = Trainer(method, training, steps_per_epoch=100_000, device=torch.device("cpu"))
    return lambda: loss_of(trainer, batch)


def loss_of(trainer: Trainer[Any], batch: Batch) -> float:
    """The loss of one step of `trainer`."""
    return trainer.train_step([batch]).loss


def serve(arguments: argparse.Namespace) -> None:
    """Run a step for each line that comes in, and answer with its time and loss."""
    torch.set_num_threads(arguments.serve_threads)
    method, batch, views = build(arguments.methods[0], arguments.encoders[0], arguments.batch_size)
    if arguments.serve == "authors":
        plain = PlainStep(method, lr=RATE)
        step: Callable[[], Any] = lambda: plain.step(views)  # noqa: E731
    else:
        step = our_step(method, batch, views, compiled=arguments.serve == "ours compiled")
    if arguments.serve == "products":
        step = products_alone(step)
    for _ in sys.stdin:
        wall, cpu = perf_counter(), process_time()
        loss = step()
        answer = {"wall": perf_counter() - wall, "cpu": process_time() - cpu, "loss": loss}
        print(json.dumps(answer), flush=True)


class Side:
    """A process that runs steps of one side when it is asked."""

    def __init__(self, side: str, method: str, encoder: str, batch_size: int, threads: int) -> None:
        options = ["--serve", side, "--serve-threads", str(threads), "--batch-size", str(batch_size)]
        command = [sys.executable, "-m", "benchmarks.cpu_step", *options, "--methods", method, "--encoders", encoder]
        # As `unmask` sets it, and as the authors' scripts do not.
        environment = os.environ if side == "authors" else os.environ | {"OMP_WAIT_POLICY": "passive"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self) -> dict[str, Any]:
        """Time and loss of one more step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended early: {' '.join(map(str, self.process.args))}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(method: str, encoder: str, batch_size: int, threads: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """All sides of one method in turns: their steps, and whether the losses agree."""
    names = ["authors", "ours", "products", *(["ours compiled"] if compiled else [])]
    sides = {name: Side(name, method, encoder, batch_size, threads) for name in names}
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        for turn in range(WARM_UP + rounds):
            for name in names if turn % 2 == 0 else list(reversed(names)):
                steps[name].append(sides[name].step())
    finally:
        for side in sides.values():
            side.close()
    losses = {name: [step["loss"] for step in steps[name]] for name in names if name != "products"}
    for name, values in losses.items():
        worst = max(abs(one - other) / max(1, abs(other)) for one, other in compared(values, losses["authors"]))
        if worst > TOLERANCE:
            raise SystemExit(f"{method}: losses of {name} differ from the authors' by {worst:.2g}: {losses}")
    return {
        "method": method,
        "encoder": encoder,
        "threads": threads,
        "batch_size": batch_size,
        "losses": losses,
        "cpu": {name: [step["cpu"] for step in steps[name][WARM_UP:]] for name in names},
        "wall": {name: [step["wall"] for step in steps[name][WARM_UP:]] for name in names},
    }


def compared(ours: Sequence[float], authors: Sequence[float]) -> list[tuple[float, float]]:
    """The losses of both sides that must agree."""
    return list(zip(ours, authors, strict=True))[:COMPARED]


def row(result: dict[str, Any]) -> tuple[str | float | int | None, ...]:
    """One line of the table."""
    cpu = result["cpu"]
    ratio = paired_ratio(cpu["authors"], cpu["ours"])
    compiled = paired_ratio(cpu["authors"], cpu["ours compiled"]) if "ours compiled" in cpu else None
    walls = result["wall"]
    images = result["batch_size"] / statistics.median(walls["ours"])
    share = paired_ratio(cpu["products"], cpu["ours"])
    losses = result["losses"]
    worst = max(abs(one - other) for one, other in compared(losses["ours"], losses["authors"]))
    return (
        result["method"],
        result["encoder"].partition("_patch")[0],
        result["threads"],
        result["batch_size"],
        images,
        ratio,
        min(cpu["authors"]) / min(cpu["ours"]),
        compiled,
        paired_ratio(walls["authors"], walls["ours"]),
        100 * share,
        f"{worst:.1e}",
    )


COLUMNS = (
    "method",
    "encoder",
    "threads",
    "batch",
    "ours, images/s",
    "authors' time by ours",
    "quickest by quickest",
    "by ours compiled",
    "by the clock",
    "matrix share, %",
    "largest difference of losses",
)


def main() -> None:
    """Compare and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["mae", "cmae", "conmim"])
    parser.add_argument("--encoders", nargs="+", default=["vit_base_patch16_224", "vit_small_patch16_224"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="also ours with torch.compile; needs a C++ compiler")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=["authors", "ours", "ours compiled", "products"], help=argparse.SUPPRESS)
    parser.add_argument("--serve-threads", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return
    results = []
    for encoder in arguments.encoders:
        for method in arguments.methods:
            for threads in arguments.threads:
                results.append(
                    compare(method, encoder, arguments.batch_size, threads, arguments.rounds, arguments.compiled)
                )
                print(row(results[-1]), flush=True)
    table = Table("One training step, float32.", COLUMNS, tuple(map(row, results)))
    publish("cpu_step", [table], out=arguments.out, facts=facts(seed=SEED), raw=results)


if __name__ == "__main__":
    main()
