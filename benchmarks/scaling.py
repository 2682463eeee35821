"""Scaling of cost: time and memory of a training step against batch, tokens and width, and of InfoNCE against ranks.

For MAE, CMAE and ConMIM in float32 on the CPU, through our trainer: processor seconds of a step (median), and the bytes
that its forward pass keeps for the backward pass (each piece of memory once, weights left out), which is what fills a
GPU. One quantity varies, the others stay: a ViT-Tiny at 128x128 pixels (64 patches), a batch of 8. The exponent is the
slope of the line through the points on logarithmic axes: 1 is proportional, 2 would be a quadratic surprise. Widths are
those of ViT-Tiny, -Small and -Base, whose weights, and so whose time, grow with the square by their nature.

The tables after it tell of the two places where a square hides. ConMIM compares the hidden patches of an image with all
patches: what share of the step's time and memory that is, at 196 and at 1,024 patches. InfoNCE over a gathered batch
compares all images with all: what a rank keeps for the backward pass where the table of logits is whole (the plain
formula) and where it is computed in parts, at a growing batch, and in 1, 2 and 4 processes (gloo) of equal batches.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.harness import RESULTS, Table, facts, publish
from benchmarks.trainers import Setting, make_trainer
from unmask.objectives.contrastive import batch_infonce, patch_infonce
from unmask.report.charts import FALLBACKS

BASE = Setting(method="mae", encoder="vit_tiny_patch16_224", image_size=128, batch=8)
WIDTHS = {"vit_tiny_patch16_224": 192, "vit_small_patch16_224": 384, "vit_base_patch16_224": 768}
TEMPERATURE = 0.07
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Of one step, or one loss with its backward pass."""

    seconds: float
    kept: int
    """Bytes kept for the backward pass."""


class KeptBytes(torch.autograd.graph.saved_tensors_hooks):
    """While it is entered, counts the memory that is kept for backward passes, each piece once.

    Memory of `without`, the weights, is not counted: it is there anyway.
    """

    def __init__(self, without: Sequence[Tensor] = ()) -> None:
        self._sizes: dict[int, int] = {}
        self._without = {tensor.untyped_storage().data_ptr() for tensor in without}
        super().__init__(self._pack, lambda tensor: tensor)

    @property
    def total(self) -> int:
        """Bytes so far. One forward pass a count: what was freed and used again would look like the same piece."""
        return sum(self._sizes.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._without:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


def step_cost(setting: Setting, rounds: int) -> Cost:
    """Of a training step after one that warms up."""
    trainer, batch = make_trainer(setting, torch.device("cpu"), precision="fp32")
    kept = KeptBytes(list(trainer.trainee.parameters()))
    with kept:
        trainer.take_step([batch])
    seconds = []
    for _ in range(rounds):
        began = process_time()
        trainer.take_step([batch])
        seconds.append(process_time() - began)
    return Cost(statistics.median(seconds), kept.total)


def loss_cost(loss: Callable[..., Tensor], inputs: Sequence[Tensor], rounds: int) -> Cost:
    """Of a loss and its backward pass, the features themselves left out. The first of `inputs` takes the gradient."""
    online = inputs[0].detach().requires_grad_()
    kept = KeptBytes([online, *inputs[1:]])
    with kept:
        held = loss(online, *inputs[1:])
    held.backward()
    seconds = []
    for _ in range(rounds):
        began = process_time()
        loss(online, *inputs[1:]).backward()
        seconds.append(process_time() - began)
    return Cost(statistics.median(seconds), kept.total)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the line through the points on logarithmic axes."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


Curves = dict[str, dict[str, list[tuple[float, Cost]]]]
"""By what varies and by method: (size, cost)."""


def step_curves(
    methods: Sequence[str],
    base: Setting,
    batches: Sequence[int],
    sides: Sequence[int],
    encoders: Sequence[str],
    rounds: int,
) -> Curves:
    """Costs of steps, one quantity varied at a time."""
    varied: dict[str, list[tuple[float, Setting]]] = {
        "batch": [(batch, replace(base, batch=batch)) for batch in batches],
        "tokens": [(setting.tokens, setting) for setting in (replace(base, image_size=side) for side in sides)],
        "width": [(WIDTHS[name], replace(base, encoder=name)) for name in encoders],
    }
    return {
        quantity: {
            method: [(size, step_cost(replace(setting, method=method), rounds)) for size, setting in settings]
            for method in methods
        }
        for quantity, settings in varied.items()
    }


def plain_infonce(online_BD: Tensor, target_BD: Tensor) -> Tensor:
    """The formula with its whole table of logits, all on one rank."""
    logits_BB = F.normalize(online_BD, dim=-1) @ F.normalize(target_BD, dim=-1).T / TEMPERATURE
    return F.cross_entropy(logits_BB, torch.arange(len(online_BD)))


def our_infonce(online_BD: Tensor, target_BD: Tensor) -> Tensor:
    """InfoNCE as CMAE has it."""
    return batch_infonce(online_BD, target_BD, TEMPERATURE)


def infonce_curves(batches: Sequence[int], width: int, rounds: int) -> dict[str, list[tuple[float, Cost]]]:
    """Cost of InfoNCE on one rank by the batch: whole, and in parts where it is large."""
    losses = {"whole table": plain_infonce, "ours": our_infonce}
    return {
        name: [(batch, loss_cost(loss, _features(2, batch, width).unbind(), rounds)) for batch in batches]
        for name, loss in losses.items()
    }


def rank_curve(worlds: Sequence[int], batch: int, width: int, rounds: int) -> list[tuple[float, Cost]]:
    """Cost of InfoNCE on one of several ranks, each with `batch` images of its own."""
    points = []
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_rank, (world, batch, width, rounds, folder), nprocs=world)
            costs = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]
        points.append((float(world), Cost(*(max(column) for column in zip(*costs, strict=True)))))
    return points


def _rank(rank: int, world: int, batch: int, width: int, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    cost = loss_cost(our_infonce, _features(2, batch, width).unbind(), rounds)
    torch.save((cost.seconds, cost.kept), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def conmim_logits(setting: Setting, rounds: int) -> tuple[str | float | int, ...]:
    """Patches, then the share of the loss over patches in the time and in the memory of ConMIM's step."""
    trainer, batch = make_trainer(setting, torch.device("cpu"), precision="fp32")
    method = trainer.trainee
    mask_BN = method.make_views(batch).mask_BN
    online, target = _features(2, setting.batch, setting.tokens, method.config.projector.out).unbind()

    def loss(online_BND: Tensor, target_BND: Tensor) -> Tensor:
        return patch_infonce(online_BND, target_BND, mask_BN, method.config.temperature)

    own, step = loss_cost(loss, (online, target), rounds), step_cost(setting, rounds)
    return setting.tokens, step.seconds, own.seconds / step.seconds, step.kept / MIB, own.kept / step.kept


def _features(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def draw(curves: Curves, infonce: dict[str, list[tuple[float, Cost]]], file: Path) -> None:
    """All curves in one figure: time above, memory below, logarithmic axes."""
    panels = {**curves, "images of all ranks": infonce}
    figure = Figure(figsize=(3 * len(panels), 5.2), layout="constrained")
    grid = figure.subplots(2, len(panels), sharex="col", squeeze=False)
    for column, (quantity, lines) in enumerate(panels.items()):
        for row, (label, scale) in enumerate((("processor seconds", 1.0), ("MiB kept for backward", MIB))):
            axes = grid[row][column]
            for index, (name, points) in enumerate(lines.items()):
                sizes = [size for size, _ in points]
                values = [(cost.seconds if row == 0 else cost.kept) / scale for _, cost in points]
                slope = exponent(sizes, values)
                place = index + 4 * (quantity not in curves)
                colour = FALLBACKS[place % len(FALLBACKS)]
                axes.loglog(sizes, values, "o-", color=colour, markersize=3, label=f"{name}  (slope {slope:.2f})")
            axes.legend(frameon=False, fontsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7)
            axes.grid(color="#dddddd", linewidth=0.5)
            if column == 0 or (row == 0 and quantity not in curves):
                axes.set_ylabel(label, fontsize=8)
            if row == 0:
                axes.set_title("InfoNCE alone" if quantity not in curves else f"step by {quantity}", fontsize=9)
            else:
                axes.set_xlabel(quantity, fontsize=8)
                axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
                axes.minorticks_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    # The same figures give the same file.
    figure.savefig(file, metadata={"Date": None})


def curve_table(caption: str, first: str, lines: dict[str, list[tuple[float, Cost]]]) -> Table:
    """A line a curve: cost at the smallest and at the largest size, and the exponents."""
    columns = (
        first,
        "from",
        "to",
        "seconds at both ends",
        "exponent of time",
        "MiB at both ends",
        "exponent of memory",
    )
    rows = []
    for name, points in lines.items():
        sizes, costs = [size for size, _ in points], [cost for _, cost in points]
        rows.append(
            (
                name,
                f"{sizes[0]:g}",
                f"{sizes[-1]:g}",
                f"{costs[0].seconds:.3g} to {costs[-1].seconds:.3g}",
                exponent(sizes, [cost.seconds for cost in costs]),
                f"{costs[0].kept / MIB:.3g} to {costs[-1].kept / MIB:.3g}",
                exponent(sizes, [cost.kept for cost in costs]),
            )
        )
    return Table(caption, columns, tuple(rows))


def main() -> None:
    """Measure, publish and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["mae", "cmae", "conmim"])
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--sides", nargs="+", type=int, default=[64, 128, 224, 320], help="of the images")
    parser.add_argument("--encoders", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument(
        "--tiny", action="store_true", help="one block, small decoders and heads, to test the benchmark"
    )
    parser.add_argument("--logits-sides", nargs="+", type=int, default=[224, 512], help="of ConMIM's images")
    parser.add_argument("--logits-encoder", default="vit_small_patch16_224")
    parser.add_argument("--infonce", nargs="+", type=int, default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rank-batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tiny: dict[str, Any] = {"depth": 1, "small_parts": True} if given.tiny else {}
    base = replace(BASE, **tiny)
    curves = step_curves(given.methods, base, given.batches, given.sides, given.encoders, given.rounds)
    infonce = infonce_curves(given.infonce, 256, given.rounds)
    ranks = rank_curve(given.worlds, given.rank_batch, 256, given.rounds)
    wide = replace(base, method="conmim", encoder=given.logits_encoder, batch=4)
    shares = [conmim_logits(replace(wide, image_size=side), given.rounds) for side in given.logits_sides]
    tables = [curve_table(f"A training step by {quantity}.", "method", lines) for quantity, lines in curves.items()]
    tables += [
        curve_table("InfoNCE by the images of the batch, all on one rank; 256 features.", "table of logits", infonce),
        curve_table(f"InfoNCE on each of several ranks of {given.rank_batch:,} images.", "by ranks", {"ours": ranks}),
        Table(
            f"ConMIM's comparison of patches, within a step of {given.logits_encoder}, batch {wide.batch}.",
            ("patches", "seconds of the step", "its share of time", "MiB of the step", "its share of memory"),
            tuple(shares),
        ),
    ]
    raw: dict[str, Any] = {"steps": curves, "infonce": infonce, "ranks": ranks}
    publish("scaling", tables, out=given.out, facts=facts(seed=0, rounds=given.rounds), raw=plain_values(raw))
    draw(curves, infonce, (given.out or RESULTS / "scaling.json").with_suffix(".svg"))


def plain_values(value: Any) -> Any:
    """Costs as JSON has them."""
    if isinstance(value, Cost):
        return {"seconds": value.seconds, "kept_bytes": value.kept}
    if isinstance(value, dict):
        return {key: plain_values(part) for key, part in value.items()}
    return [plain_values(part) for part in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    main()
