"""Matrix products of float32 on the CPU: torch's library against NumPy's, at the shapes of training.

Each line is one linear layer (tokens x inputs to outputs): its forward pass, the gradient of its inputs and that of its
weights, by `torch.mm` and by NumPy. All take turns in one process with one thread; rates are medians of the rounds.
`unmask.models.products` trains with NumPy's on processors by AMD, where torch uses Intel's library.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Table, Timing, facts, paired_ratio, publish, take_turns
from unmask.models.products import numpy_is_quicker, quick_products

LAYERS = (
    ("ViT-S, MLP, 4 images", 788, 384, 1536),
    ("ViT-B, MLP, 4 images of MAE", 200, 768, 3072),
    ("ViT-B, MLP, 4 images", 788, 768, 3072),
    ("MAE's decoder, MLP, 4 images", 788, 512, 2048),
    ("ConMIM's projector, 4 images", 788, 4096, 4096),
)


def passes(tokens: int, inputs: int, outputs: int) -> dict[str, Callable[[], Any]]:
    """Forward pass and both gradients of a layer, by each library."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    x, weight, gradient = draw(tokens, inputs), draw(outputs, inputs), draw(tokens, outputs)
    factors = {"forward": (x, weight.t()), "of inputs": (gradient, weight), "of weights": (gradient.t(), x)}
    entries: dict[str, Callable[[], Any]] = {}
    for name, (left, right) in factors.items():
        entries[f"torch {name}"] = partial(torch.mm, left, right, out=left @ right)
        entries[f"numpy {name}"] = partial(np.matmul, left.numpy(), right.numpy(), out=(left @ right).numpy())
    return entries


def row(name: str, sizes: tuple[int, int, int], timings: dict[str, Timing]) -> tuple[Any, ...]:
    """GFLOP/s of both libraries over all three passes, and how many times torch's time is NumPy's, by pass."""
    tokens, inputs, outputs = sizes
    flops = 2 * tokens * inputs * outputs
    kinds = ("forward", "of inputs", "of weights")
    rates = [
        3 * flops / sum(timings[f"{library} {kind}"].cpu_seconds for kind in kinds) / 1e9
        for library in ("torch", "numpy")
    ]
    ratios = [paired_ratio(timings[f"torch {kind}"].cpu, timings[f"numpy {kind}"].cpu) for kind in kinds]
    return (name, f"{tokens} x {inputs} x {outputs}", *rates, *ratios)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, raw = [], {}
    with quick_products():  # NumPy, too, with one thread
        for name, *sizes in LAYERS:
            timings = take_turns(passes(*sizes), rounds=arguments.rounds)
            rows.append(row(name, (sizes[0], sizes[1], sizes[2]), timings))
            raw[name] = {entry: timing.cpu for entry, timing in timings.items()}
    columns = (
        "layer",
        "tokens x inputs x outputs",
        "torch, GFLOP/s",
        "NumPy, GFLOP/s",
        "torch's time by NumPy's: forward",
        "gradient of inputs",
        "gradient of weights",
    )
    chosen = "NumPy's" if numpy_is_quicker() else "torch's"
    table = Table(f"One thread; training uses {chosen} on this machine.", columns, tuple(rows))
    publish("matrix_library", [table], out=arguments.out, facts=facts(seed=0, rounds=arguments.rounds), raw=raw)


if __name__ == "__main__":
    main()
