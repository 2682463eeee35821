"""What a method's views cost beside its training step, on the device that trains.

ConMIM with ViT-B/16 at 224: `make_views` (flip, colour, normalisation, masks; the bytes are on the device) against a
whole step of the trainer, which makes views, too. The share that views take must stay below 5 % on a GPU. There, two
more figures tell where the time goes: the seconds until all work is launched and the host is free again, and how often
the host had to wait for the device, which torch itself counts and which must be never. CMAE and MAE stand beside it.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.harness import Table, Timing, facts, paired_ratio, publish, take_turns
from benchmarks.trainers import Setting, make_trainer
from unmask.data.batch import Batch
from unmask.methods.base import Method

Views = Callable[[], None]


def views_of(method: Method[Any], batch: Batch) -> Views:
    """Make the views of a batch, with other random numbers each time."""
    seed = 0

    def make() -> None:
        nonlocal seed
        seed += 1
        method.make_views(replace(batch, seed=seed))

    return make


def measure(
    setting: Setting, device: torch.device, *, rounds: int
) -> tuple[dict[str, Timing], dict[str, float | None]]:
    """Seconds of views and of steps, and what only a GPU can tell of views."""
    trainer, batch = make_trainer(setting, device)
    views = views_of(trainer.trainee, batch)

    def step() -> None:
        trainer.take_step([batch])
        trainer.settle()

    timings = take_turns({"views": views, "step": step}, rounds=rounds)
    return timings, {"launch": launch_seconds(views, device), "syncs": count_syncs(views, device)}


def launch_seconds(views: Views, device: torch.device) -> float | None:
    """Seconds until the host is free again, the device still working; None where host and device are one."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    began = perf_counter()
    views()
    launched = perf_counter() - began
    torch.cuda.synchronize()
    return launched


def count_syncs(views: Views, device: torch.device) -> int | None:
    """How often the host waits for the device."""
    if device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            views()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(warning.message) for warning in told)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["conmim", "cmae", "mae"])
    parser.add_argument("--encoder", default="vit_base_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--depth", type=int, help="blocks of the encoder; left out, as many as its name says")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    rows, raw = [], {}
    for name in options.methods:
        setting = Setting(
            method=name,
            encoder=options.encoder,
            image_size=options.image_size,
            batch=options.batch_size,
            depth=options.depth,
        )
        timings, more = measure(setting, device, rounds=options.rounds)
        share = 100 * paired_ratio(timings["views"].wall, timings["step"].wall)
        per_image = 1000 / options.batch_size
        launch = None if more["launch"] is None else more["launch"] * per_image
        seconds = timings["views"].seconds, timings["step"].seconds
        rows.append((name, seconds[0] * per_image, seconds[1] * per_image, share, launch, more["syncs"]))
        raw[name] = {entry: {"wall": timing.wall, "cpu": timing.cpu} for entry, timing in timings.items()}
    table = Table(
        f"{options.encoder} at {options.image_size}, batches of {options.batch_size}, on {device.type}.",
        ("method", "views, ms an image", "step, ms an image", "share, %", "launching, ms an image", "waits"),
        tuple(rows),
    )
    publish(
        "device_views",
        [table],
        out=options.out,
        facts=facts(seed=0, device=device.type, rounds=options.rounds),
        raw=raw,
    )


if __name__ == "__main__":
    main()
