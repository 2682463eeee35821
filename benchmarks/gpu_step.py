"""Training steps on a GPU: our trainer against the authors' step, with the share of the matrix rate that each reaches.

ConMIM and CMAE with ViT-B/16 and MAE with ViT-L/16, at 224x224 pixels. The peer is `benchmarks.plain`: the authors'
step re-stated on our weights, eager, fp16 autocast with a gradient scaler, the loss read at every step; it is given
views that are ready, while ours makes its own from uint8. Ours is the trainer as users get it in bf16: eager, compiled,
compiled into CUDA graphs (`mode="reduce-overhead"`), and compiled with activation checkpointing. Entries of a method
take turns; each turn is several steps, waited for at the end.

The model's FLOPs are those of our eager step as torch counts them, and all entries of a method are held to the same
number: what the peer computes beyond it is waste. The ceiling is measured in the same run: the matrix products of that
step, alone, in bf16; "ceiling" is the rate of the quickest shape, "all its products" the rate at which the products
of a step run together. Peak memory is what an entry adds to what was allocated before it.

On the CPU (`--device cpu --tiny`) everything runs at a tiny size in float32, to test the benchmark itself; peaks are
then unknown.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Table, facts, paired_ratio, publish, take_turns
from benchmarks.plain.steps import PlainStep
from benchmarks.products import Product, RecordProducts
from benchmarks.trainers import Setting, make_trainer
from unmask.bench.clock import wait_for
from unmask.data.batch import Batch
from unmask.training.trainer import Trainer, choose_device

PLAIN = "the authors' step"
VARIANTS = ("eager", "compiled", "CUDA graphs", "checkpointing")
TINY = Setting(
    method="", encoder="vit_tiny_patch16_224", image_size=32, patch_size=8, batch=4, depth=1, small_parts=True
)
FULL = {
    "conmim": Setting(method="conmim", encoder="vit_base_patch16_224", image_size=224, batch=128),
    "cmae": Setting(method="cmae", encoder="vit_base_patch16_224", image_size=224, batch=128),
    "mae": Setting(method="mae", encoder="vit_large_patch16_224", image_size=224, batch=256),
}

Shape = tuple[int, int, int, int]
"""Products at once, and M x K times K x N."""


def shapes_of(products: Counter[Product]) -> Counter[Shape]:
    """The products by shape alone."""
    shapes: Counter[Shape] = Counter()
    for (first, second, *_), times in products.items():
        shapes[first[0] if len(first) == 3 else 1, first[-2], first[-1], second[-1]] += times
    return shapes


def flops_of(shape: Shape) -> int:
    """Of one product: a multiplication and an addition for each pair."""
    at_once, rows, inner, columns = shape
    return 2 * at_once * rows * inner * columns


@dataclass(frozen=True)
class Ceiling:
    """FLOPs a second of matrix products alone."""

    best: float
    """Of the quickest shape."""
    all_products: float
    """Of all products of the step together."""


def ceiling(shapes: Counter[Shape], device: torch.device, dtype: torch.dtype, *, seconds: float) -> Ceiling:
    """Measured on shapes that make up nearly all of the step's products, `seconds` each."""
    total = sum(flops_of(shape) * count for shape, count in shapes.items())
    # A thousandth of the step is not worth a measurement.
    large = {shape: count for shape, count in shapes.items() if flops_of(shape) * count > total / 1000}
    rates = {shape: _rate(shape, device, dtype, seconds) for shape in large}
    spent = sum(flops_of(shape) * count / rates[shape] for shape, count in large.items())
    done = sum(flops_of(shape) * count for shape, count in large.items())
    return Ceiling(max(rates.values()), done / spent)


def _rate(shape: Shape, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    at_once, rows, inner, columns = shape
    first = torch.randn(at_once, rows, inner, device=device, dtype=dtype)
    second = torch.randn(at_once, inner, columns, device=device, dtype=dtype)
    out = torch.empty(at_once, rows, columns, device=device, dtype=dtype)

    def timed(times: int) -> float:
        began = perf_counter()
        for _ in range(times):
            torch.bmm(first, second, out=out)
        wait_for(device)
        return perf_counter() - began

    timed(1)
    times = max(1, int(seconds / 3 / max(timed(1), 1e-6)))
    return flops_of(shape) * times / min(timed(times) for _ in range(3))


@dataclass(frozen=True)
class Entry:
    """A way to take training steps; `peak` is None where the device does not tell."""

    steps: Callable[[], None]
    peak: int | None


def ours(setting: Setting, variant: str, device: torch.device, count: int) -> Entry:
    """`count` steps of our trainer."""
    allocated = _allocated(device)
    trainer, batch = _trainer(setting, variant, device)

    def steps() -> None:
        for _ in range(count):
            trainer.take_step([batch])
        trainer.settle()

    return Entry(steps, _peak(steps, device, allocated))


def _trainer(setting: Setting, variant: str, device: torch.device) -> tuple[Trainer[Any], Batch]:
    setting = replace(setting, checkpointing=variant == "checkpointing")
    mode = {"CUDA graphs": "reduce-overhead", "compiled": "default", "checkpointing": "default"}.get(variant)
    return make_trainer(setting, device, precision=_precision(device), compile_mode=mode)


def _precision(device: torch.device) -> Any:
    return "bf16" if device.type == "cuda" else "fp32"


def theirs(setting: Setting, device: torch.device, count: int) -> Entry:
    """`count` steps of the authors'."""
    allocated = _allocated(device)
    trainer, batch = _trainer(setting, "eager", device)
    with torch.no_grad():
        views = trainer.trainee.make_views(batch)
    plain = PlainStep(trainer.trainee, lr=1e-4, half=device.type == "cuda")
    # Its weights are copies: ours must not count as its memory.
    del trainer

    def steps() -> None:
        for _ in range(count):
            plain.step(views)

    return Entry(steps, _peak(steps, device, allocated))


def _allocated(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(steps: Callable[[], None], device: torch.device, before: int) -> int | None:
    """Bytes above `before` while taking steps. Compilation happens here, outside of what is timed."""
    steps()
    if device.type != "cuda":
        return None
    # The first steps hold what only compiling needs.
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    steps()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def model_work(setting: Setting, device: torch.device) -> tuple[int, Counter[Shape]]:
    """FLOPs of one step of our eager trainer, and the shapes of its products."""
    trainer, batch = _trainer(setting, "eager", device)
    with FlopCounterMode(display=False) as counter:
        trainer.take_step([batch])
    with RecordProducts() as record:
        trainer.take_step([batch])
    return counter.get_total_flops(), shapes_of(record.products)


def measure(
    setting: Setting, variants: Sequence[str], device: torch.device, *, steps: int, rounds: int, product_seconds: float
) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Rows of the table, and the raw figures, for one method."""
    flops, shapes = model_work(setting, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rates = ceiling(shapes, device, dtype, seconds=product_seconds)
    entries = {PLAIN: theirs(setting, device, steps)}
    entries |= {f"ours, {variant}": ours(setting, variant, device, steps) for variant in variants}
    timings = take_turns({name: entry.steps for name, entry in entries.items()}, rounds=rounds)
    rows = [
        (
            setting.method,
            name,
            setting.batch * steps / timing.seconds,
            paired_ratio(timings[PLAIN].wall, timing.wall),
            flops * steps / timing.seconds / 1e12,
            flops * steps / timing.seconds / rates.best,
            flops * steps / timing.seconds / rates.all_products,
            _gib(entries[name].peak),
        )
        for name, timing in timings.items()
    ]
    raw = {
        "flops": flops,
        "ceiling": {"best": rates.best, "all products": rates.all_products},
        "seconds": {name: timing.wall for name, timing in timings.items()},
        "peak bytes": {name: entry.peak for name, entry in entries.items()},
    }
    return rows, raw


def _gib(value: int | None) -> float | None:
    return None if value is None else value / 2**30


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(FULL), choices=list(FULL))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--batch-size", type=int, help="default: each method's in this file")
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and images, to test the benchmark")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = choose_device(given.device)
    rows, raw = [], {}
    for name in given.methods:
        setting = replace(TINY, method=name) if given.tiny else FULL[name]
        if given.batch_size is not None:
            setting = replace(setting, batch=given.batch_size)
        found, raw[name] = measure(
            setting,
            given.variants,
            device,
            steps=given.steps,
            rounds=given.rounds,
            product_seconds=0.01 if given.tiny else 0.3,
        )
        rows += found
    columns = ("method", "step", "images/s", "times the authors'", "model TFLOP/s", "share of the ceiling")
    columns += ("share of the rate of all its products", "peak GiB")
    what = "tiny networks, a test" if given.tiny else "ViT-B/16 (MAE: ViT-L/16), 224x224 pixels"
    publish(
        "gpu_step",
        [Table(f"Training steps on {device.type}, {what}.", columns, tuple(rows))],
        out=given.out,
        facts=facts(seed=0, steps=given.steps, rounds=given.rounds, device=str(device)),
        raw=raw,
    )


if __name__ == "__main__":
    main()
