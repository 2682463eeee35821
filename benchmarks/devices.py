"""Scaling from 1 to 2 processes: images a second of two ranks that train together, against one process alone.

Sides take turns, step by step: a process with one thread; two ranks (gloo) with one thread and as many images each, so
twice the global batch; two such processes at once that know nothing of each other, which is all that this machine
has to give; one process with two threads and both shares of images. The efficiency is the time of the one process by
the time of the two ranks; next to it, the time of the two strangers by that of the two ranks, which is what only the
exchange of gradients and features costs. float32 on the CPU, through our trainer, a batch of noise.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.harness import ROOT, Table, facts, paired_ratio, publish
from benchmarks.trainers import Setting
from unmask.bench.made import made_batch
from unmask.methods import find_method
from unmask.ranks import world_size
from unmask.training.trainer import Trainer, TrainingConfig

WARM_UP = 1


def serve(arguments: argparse.Namespace) -> None:
    """Take a step for each line that comes in, and answer with its seconds; several processes are ranks."""
    torch.set_num_threads(arguments.serve)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    setting = Setting(
        method=arguments.methods[0],
        encoder=arguments.encoder,
        image_size=arguments.image_size,
        batch=arguments.batch_size,
        depth=arguments.depth,
        small_parts=arguments.depth is not None,
    )
    torch.manual_seed(0)
    method = find_method(setting.method)(setting.config())
    world = world_size()
    training = TrainingConfig(batch_size=world * setting.batch, parts=world, workers=0, device="cpu", precision="fp32")
    trainer: Trainer[Any] = Trainer(method, training, steps_per_epoch=1000, device=torch.device("cpu"))
    batch = made_batch(method, setting.batch)
    for _ in sys.stdin:
        began = perf_counter()
        trainer.take_step([batch])
        print(json.dumps(perf_counter() - began), flush=True)


class Side:
    """Processes that take a step each, at once, when they are asked."""

    def __init__(
        self, method: str, arguments: argparse.Namespace, *, processes: int, ranks: bool, threads: int
    ) -> None:
        batch = arguments.batch_size * threads
        command = [sys.executable, "-m", "benchmarks.devices", "--serve", str(threads), "--methods", method]
        command += ["--encoder", arguments.encoder, "--image-size", str(arguments.image_size)]
        command += ["--batch-size", str(batch), *([] if arguments.depth is None else ["--depth", str(arguments.depth)])]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        plain = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.images = batch * processes
        self.processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=plain | (meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks else {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]

    def step(self) -> float:
        """Seconds of one more step: of the slowest process."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("step\n")
            process.stdin.flush()
        seconds = []
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"a side ended early: {' '.join(map(str, process.args))}")
            seconds.append(float(json.loads(line)))
        return max(seconds)

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait()


def compare(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of steps of all sides, in turns, and the images of a step of each."""
    sides = {
        "one": Side(method, arguments, processes=1, ranks=False, threads=1),
        "ranks": Side(method, arguments, processes=2, ranks=True, threads=1),
        "strangers": Side(method, arguments, processes=2, ranks=False, threads=1),
        "threads": Side(method, arguments, processes=1, ranks=False, threads=2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    try:
        for turn in range(WARM_UP + arguments.rounds):
            for name in sides if turn % 2 == 0 else reversed(sides):
                taken = sides[name].step()
                if turn >= WARM_UP:
                    seconds[name].append(taken)
    finally:
        for side in sides.values():
            side.close()
    return {"method": method, "images": {name: side.images for name, side in sides.items()}, "seconds": seconds}


COLUMNS = (
    "method",
    "1 process, images/s",
    "2 ranks, images/s",
    "efficiency, %",
    "2 strangers, images/s",
    "of what the machine gives, %",
    "1 process, 2 threads, images/s",
    "2 ranks by 2 threads",
)


def row(result: dict[str, Any]) -> tuple[str | float | int | None, ...]:
    """One line of the table; ratios are taken round by round."""
    seconds = result["seconds"]
    speed = {name: result["images"][name] / statistics.median(values) for name, values in seconds.items()}
    return (
        result["method"],
        speed["one"],
        speed["ranks"],
        100 * paired_ratio(seconds["one"], seconds["ranks"]),
        speed["strangers"],
        100 * paired_ratio(seconds["strangers"], seconds["ranks"]),
        speed["threads"],
        paired_ratio(seconds["threads"], seconds["ranks"]),
    )


def tables(results: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> list[Table]:
    """A line a method."""
    caption = (
        f"{arguments.encoder} at {arguments.image_size}x{arguments.image_size}, "
        f"{arguments.batch_size} images of each process and thread."
    )
    return [Table(caption, COLUMNS, tuple(map(row, results)))]


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["conmim", "cmae", "mae"])
    parser.add_argument("--encoder", default="vit_small_patch16_224")
    parser.add_argument("--depth", type=int, help="of the encoder, with tiny heads and decoders, for a quick trial")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return
    results = []
    for method in arguments.methods:
        results.append(compare(method, arguments))
        print(row(results[-1]), flush=True)
    publish("devices", tables(results, arguments), out=arguments.out, facts=facts(seed=0), raw=results)


if __name__ == "__main__":
    main()
