"""Indexing: from a folder of a million files to a source that can be asked for any image.

`open_source` whole (scan, sort, classes and split), cold (no cache of ours) and cached, against `os.walk`, the least
that Python can do (it only counts), and torchvision's `ImageFolder`, which does the same work and has no cache. The
files are empty and lie in 1,000 folders of equal size, named as ImageNet's; a second layout has two files a folder, as
sets of pairs or of people have. The file system's own cache is warm for all. Entries take turns, medians are shown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from torchvision.datasets import ImageFolder

from benchmarks.harness import Table, Timing, facts, publish, take_turns
from unmask.data.index import cache_folder
from unmask.data.sources import open_source

COLUMNS = ("entry", "seconds", "processor seconds", "files a second", "times quicker than ImageFolder")


def make_tree(root: Path, files: int, folders: int) -> Path:
    """`files` empty image files in `folders` folders, which look as if nobody had touched them for years."""
    for number in range(folders):
        folder = root / f"n{number:08d}"
        folder.mkdir(parents=True)
        for file in range(number, files, folders):
            os.close(os.open(folder / f"n{number:08d}_{file}.JPEG", os.O_CREAT | os.O_WRONLY))
        os.utime(folder, (1e9, 1e9))
    os.utime(root, (1e9, 1e9))
    return root


def entries(root: Path, files: int) -> dict[str, Callable[[], None]]:
    """What is timed. Each must find every file."""

    def walk() -> None:
        assert sum(len(names) for _, _, names in os.walk(root)) == files

    def image_folder() -> None:
        assert len(ImageFolder(root, loader=str)) == files

    def cold() -> None:
        shutil.rmtree(cache_folder(), ignore_errors=True)
        cached()

    def cached() -> None:
        assert len(open_source(root)) == files

    def split() -> None:
        assert 0.4 * files < len(open_source(root, split="train")) < 0.9 * files

    return {
        "os.walk, counting": walk,
        "torchvision ImageFolder": image_folder,
        "unmask, cold": cold,
        "unmask, cached": cached,
        "unmask, cached, its training split": split,
    }


def table(timings: dict[str, Timing], files: int, folders: int) -> Table:
    """Medians of all entries."""
    peer = timings["torchvision ImageFolder"].cpu_seconds
    rows = tuple(
        (name, timing.seconds, timing.cpu_seconds, files / timing.seconds, peer / timing.cpu_seconds)
        for name, timing in timings.items()
    )
    return Table(f"{files:,} files in {folders:,} folders.", COLUMNS, rows)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=200_000, help="files of the layout with two a folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    layouts = [(arguments.files, min(1000, arguments.files)), (arguments.pairs, arguments.pairs // 2)]
    tables, raw = [], {}
    for files, folders in layouts:
        with tempfile.TemporaryDirectory() as folder:
            # Our cache, too, lives and dies with this run.
            os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
            root = make_tree(Path(folder) / "images", files, folders)
            timings = take_turns(entries(root, files), rounds=arguments.rounds)
        tables.append(table(timings, files, folders))
        raw[f"{files} in {folders}"] = {name: {"wall": t.wall, "cpu": t.cpu} for name, t in timings.items()}
    publish("indexing", tables, out=arguments.out, facts=facts(seed=0, rounds=arguments.rounds), raw=raw)


if __name__ == "__main__":
    main()
