"""Memory over a long run: does the training process grow?

Two thousand steps of each method with a tiny network through our trainer and loader (one data worker), each method in a
fresh process: resident memory at the start, its peak, and its slope after a warm-up (a line by least squares), which
must stay below the bound, or the command fails. What leaks once a step (a tensor kept in a list, a handle, a graph)
shows here at any size of the network: the crops of a step are 24 KiB at least, so that one batch kept each step would
be 24 MiB in a thousand steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import ROOT, Table, facts, publish
from benchmarks.startup import photo_folder
from benchmarks.trainers import Setting, make_trainer
from unmask.data.loader import CropLoader
from unmask.data.sources import open_source

TINY = Setting(
    method="mae", encoder="vit_tiny_patch16_224", image_size=32, patch_size=8, batch=8, depth=1, small_parts=True
)
BOUND = 4.0
"""MiB in a thousand steps that the process may grow by: a sixth of what the smallest tensor of a step would leave."""
EVERY = 20
"""Steps between two looks."""
MIB = 2**20
_ALONE = """
import json, sys
from benchmarks.memory import train
growth = train(sys.argv[1], sys.argv[2], int(sys.argv[3]))
print(json.dumps([growth.resident, growth.peak]))
"""


@dataclass(frozen=True)
class Growth:
    """Resident memory of one run, in MiB."""

    resident: tuple[float, ...]
    """Before the first step, and after every `EVERY` steps."""
    peak: float
    """Of the process since its start, imports included."""

    def slope(self, warm_up: int) -> float:
        """MiB in a thousand steps, after `warm_up` steps."""
        after = np.array(self.resident[warm_up // EVERY :])
        return float(np.polyfit(np.arange(len(after)) * EVERY / 1000, after, 1)[0])


def resident() -> float:
    """MiB of this process that lie in memory, by Linux's table."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def train(method: str, photos: str, steps: int) -> Growth:
    """Take the steps and look at this process on the way."""
    torch.set_num_threads(1)
    trainer, _ = make_trainer(replace(TINY, method=method), torch.device("cpu"), precision="fp32")
    loader = CropLoader(
        open_source(photos), trainer.trainee.crops, batch_size=TINY.batch, total_steps=steps, seed=0, workers=1
    )
    seen = [resident()]
    for step, batch in enumerate(loader, start=1):
        trainer.train_step([batch])
        if step % EVERY == 0:
            seen.append(resident())
    # The two are counted apart, and may differ by a little.
    peak = max(*seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return Growth(tuple(seen), peak)


def measure(methods: Sequence[str], images: int, steps: int) -> dict[str, Growth]:
    """Each method in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        photos = photo_folder(Path(folder), images)
        found = {}
        for method in methods:
            command = [sys.executable, "-c", _ALONE, method, str(photos), str(steps)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            seen, peak = json.loads(done.stdout.splitlines()[-1])
            found[method] = Growth(tuple(seen), peak)
    return found


def main() -> int:
    """Measure and publish; 1 where a method grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["conmim", "cmae", "mae"])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--warm-up", type=int, default=500)
    parser.add_argument("--bound", type=float, default=BOUND, help="MiB in a thousand steps")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.steps < given.warm_up + 2 * EVERY:
        parser.error(f"no slope without {2 * EVERY} steps after the warm-up")
    found = measure(given.methods, given.images, given.steps)
    rows = tuple(
        (method, growth.resident[0], growth.resident[-1], growth.peak, growth.slope(given.warm_up))
        for method, growth in found.items()
    )
    columns = ("method", "MiB at the start", "MiB at the end", "peak MiB", "MiB in a thousand steps")
    caption = (
        f"Resident memory of the training process over {given.steps:,} steps; bound of the slope: {given.bound:g}."
    )
    publish(
        "memory",
        [Table(caption, columns, rows)],
        out=given.out,
        facts=facts(seed=0, steps=given.steps, warm_up=given.warm_up, bound=given.bound),
        raw={method: growth.resident for method, growth in found.items()},
    )
    growing = [method for method, growth in found.items() if growth.slope(given.warm_up) > given.bound]
    if growing:
        print(f"the training process grows: {', '.join(growing)}")
    return 1 if growing else 0


if __name__ == "__main__":
    sys.exit(main())
