"""Memory of data workers over a long run: its peak in each, and whether it grows.

A `CropLoader` with two workers reads JPEG files of ImageNet's size from a tar archive, each file a different crop of a
photograph, and hands over batches as training takes them. Of each worker /proc tells the peak of its resident memory
(VmHWM), its share of it (Pss divides pages among the processes that use them) and, every so many steps, its memory that
is no file's (RssAnon), whose slope (a line by least squares, after a warm-up) must stay below 2 MiB in a thousand steps
or the command fails.

What bounds it. A worker begins as a copy of the main process, with which it shares the libraries, the table of files
and the labels. Its own are: the pixels of one image (at most 33.6 MB are kept for the next one, and while an image of
the largest size is decoded, 64 megapixels at three bytes, 192 MB more), the crops of the batches that it has begun and
that wait to be taken (two of batch x crops x 3 x height x width bytes: 19 MB for batches of 64 at 224), in shared
memory, and nothing that counts files or steps.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import active_children
from pathlib import Path

import numpy as np

from benchmarks.data_path import photos
from benchmarks.harness import Table, facts, publish
from unmask.data.batch import CropConfig
from unmask.data.loader import CropLoader
from unmask.data.sources import TarSource

BOUND = 2.0
"""MiB in a thousand steps that a worker's anonymous memory may grow by; a batch kept each step would be 9,000."""


@dataclass
class Worker:
    """What one worker's memory was, in MiB."""

    anonymous: list[float] = field(default_factory=list)
    peak: float = 0.0
    share: float = 0.0

    def look(self, process: int) -> None:
        """Read /proc once more."""
        status = _fields(Path(f"/proc/{process}/status"))
        # Not the private pages: one that the main process writes to stays with the worker alone, which looks like
        # growth of the worker.
        self.anonymous.append(status["RssAnon"])
        self.share = max(self.share, _fields(Path(f"/proc/{process}/smaps_rollup"))["Pss"])
        self.peak = status["VmHWM"]

    def slope(self, every: int, warm_up: int) -> float:
        """MiB in a thousand steps after `warm_up` steps."""
        after = self.anonymous[warm_up // every :]
        return float(np.polyfit(np.arange(len(after)) * every / 1000, after, 1)[0])


def _fields(file: Path) -> dict[str, float]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0].removesuffix(":"): int(words[1]) / 1024 for words in lines if words[-1] == "kB"}


def tar_of_photos(file: Path, count: int) -> Path:
    """An archive of `count` files."""
    with tarfile.open(file, "w") as tar:
        for number, data in enumerate(photos(count)):
            member = tarfile.TarInfo(f"{number % 10}/{number:06d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def watch(source: TarSource, *, size: int, batch: int, steps: int, workers: int, every: int) -> list[Worker]:
    """Take `steps` batches and look at every worker each `every` steps."""
    crops = (CropConfig(height=size, width=size),)
    loader = CropLoader(source, crops, batch_size=batch, total_steps=steps, seed=0, workers=workers)
    seen: dict[int, Worker] = {}
    before = {child.pid for child in active_children()}
    for step, taken in enumerate(loader, start=1):
        assert taken.size == batch
        if step % every == 0:
            for child in active_children():
                if child.pid is not None and child.pid not in before:
                    seen.setdefault(child.pid, Worker()).look(child.pid)
    return list(seen.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and publish; exit code 1 where a worker grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="in the archive")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--warm-up", type=int, default=400)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        source = TarSource("photographs", tar_of_photos(Path(folder) / "photos.tar", options.images))
        workers = watch(
            source,
            size=options.image_size,
            batch=options.batch_size,
            steps=options.steps,
            workers=2,
            every=options.every,
        )
    slopes = [worker.slope(options.every, options.warm_up) for worker in workers]
    rows = tuple(
        (number, worker.peak, worker.share, worker.anonymous[-1], slope)
        for number, (worker, slope) in enumerate(zip(workers, slopes, strict=True), start=1)
    )
    table = Table(
        f"{options.steps} steps of {options.batch_size} images, {options.images} files; MiB.",
        ("worker", "peak resident", "peak share (Pss)", "anonymous at the end", "growth in 1,000 steps"),
        rows,
    )
    publish(
        "worker_memory",
        [table],
        out=options.out,
        facts=facts(seed=0, steps=options.steps, batch=options.batch_size, every=options.every),
        raw={"anonymous": [worker.anonymous for worker in workers]},
    )
    if max(slopes) > BOUND:
        sys.exit(f"a data worker grows by {max(slopes):.1f} MiB in a thousand steps")


if __name__ == "__main__":
    main()
