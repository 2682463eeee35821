"""Checkpointing: what share of training time the checkpoints of a run cost, at the default --checkpoint-every.

For each method and size: the seconds of a training step (median), and of a save as a run makes it, wall clock, to the
folder of temporary files: all tensors are taken from the trainer, get their checksums, are written aside, flushed to
the disk (fsync) and renamed, and the checkpoint before is deleted. The share is one save by the steps between two and
that save. It falls with the batch and rises with the speed of the device: the last column is the step's time above
which checkpoints cost less than one percent, wherever the same file takes as long to be written. float32 on the CPU,
a batch of noise.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.harness import Table, facts, publish
from benchmarks.trainers import Setting, make_trainer
from unmask.training.checkpoint import checkpoint_path, load_checkpoint, prune_checkpoints, save_checkpoint
from unmask.training.trainer import TrainingOptions

EVERY = TrainingOptions().checkpoint_every
SIZES = {
    "tiny": Setting(method="mae", encoder="vit_tiny_patch16_224", image_size=32, patch_size=8, batch=32),
    "base": Setting(method="mae", encoder="vit_base_patch16_224", image_size=224, batch=8),
}
COLUMNS = (
    "method",
    "encoder",
    "image",
    "batch",
    "step, s",
    "file, MB",
    "save, s",
    "load, s",
    f"share of time, every {EVERY} steps, %",
    "below 1 % from a step of, s",
)


def measure(setting: Setting, steps: int, saves: int) -> dict[str, Any]:
    """Seconds of steps, saves and loads in turns; bytes of the file."""
    cpu = torch.device("cpu")
    trainer, batch = make_trainer(setting, cpu, precision="fp32")
    trainer.train_step([batch])
    seconds: dict[str, list[float]] = {"step": [], "save": [], "load": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(saves):
            for _ in range(steps):
                began = perf_counter()
                trainer.take_step([batch])
                seconds["step"].append(perf_counter() - began)
            path = checkpoint_path(folder, trainer.step)
            began = perf_counter()
            save_checkpoint(path, trainer.state({}))
            prune_checkpoints(folder, trainer.step, keep_every=0)
            seconds["save"].append(perf_counter() - began)
            began = perf_counter()
            load_checkpoint(path, cpu)
            seconds["load"].append(perf_counter() - began)
        size = path.stat().st_size
    return {"setting": vars(setting), "bytes": size, "seconds": seconds}


def row(result: dict[str, Any]) -> tuple[str | float | int | None, ...]:
    """One line of the table."""
    setting = result["setting"]
    middle = {name: statistics.median(values) for name, values in result["seconds"].items()}
    return (
        setting["method"],
        setting["encoder"].partition("_patch")[0],
        setting["image_size"],
        setting["batch"],
        middle["step"],
        result["bytes"] / 1e6,
        middle["save"],
        middle["load"],
        100 * middle["save"] / (EVERY * middle["step"] + middle["save"]),
        99 * middle["save"] / EVERY,
    )


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["mae", "cmae", "conmim"])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--steps", type=int, default=2, help="between two saves")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = []
    for size in arguments.sizes:
        for method in arguments.methods:
            setting = Setting(**vars(SIZES[size]) | {"method": method})
            results.append(measure(setting, arguments.steps, arguments.saves))
            print(row(results[-1]), flush=True)
    table = Table("A checkpoint and the steps between two.", COLUMNS, tuple(map(row, results)))
    publish("checkpointing", [table], out=arguments.out, facts=facts(seed=0), raw=results)


if __name__ == "__main__":
    main()
