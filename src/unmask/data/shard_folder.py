"""A folder that shards are written into: whose it is, which of its shards are finished, and at last its index.

What is known of finished shards lies in a folder of its own until the index is written, so that a command that was
stopped or killed keeps what it had finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unmask.data.remote import file_checksum
from unmask.data.shard_table import ARRAYS_FILE, INDEX_FILE, Shard, index_facts, list_shard, read_facts, table_of
from unmask.data.shard_writing import Sample, write_atomically, write_shard, writing

BAD_FILES = "bad_files.txt"
WORK_FOLDER = ".unmask-shard"
_PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What the shards of a folder are: the same plan means the same bytes.

    `images` a shard, or for a stream `megabytes`; without a `seed` the order of the data is kept; `names` is a checksum
    of the names of all images.
    """

    data: str
    split: str
    seed: int | None
    images: int | None
    megabytes: float | None
    names: str


@dataclass(frozen=True)
class Done:
    """A finished shard: how many images it was to hold, how many it holds, its SHA-256, and the files that cannot be
    used, with the reason. A shard without images is no file."""

    taken: int
    images: int
    checksum: str
    bad: Mapping[str, str]


@dataclass
class Tally:
    """What becomes known while a shard is written: how many images were looked at, and which cannot be used."""

    taken: int = 0
    bad: dict[str, str] = field(default_factory=dict)


class ShardFolder:
    """Where shards are written: OUT of `unmask shard`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._work = path / WORK_FOLDER

    def claim(self, plan: Plan) -> bool:
        """Make the folder this plan's, or find that it is; returns whether all is finished already.

        ValueError where it holds something else.
        """
        wanted = json.loads(json.dumps(vars(plan)))
        held = self._plan()
        if held is not None:
            for name, value in wanted.items():
                if held.get(name) != value:
                    said = "images are others" if name == "names" else f"{name} is {held.get(name)}, not {value}"
                    raise ValueError(f"{self.path} holds other shards (their {said}); choose another OUT")
            return not self._work.exists()
        if self.path.exists() and (not self.path.is_dir() or any(entry != self._work for entry in self.path.iterdir())):
            raise ValueError(f"{self.path} exists and holds no shards of this command; choose another OUT")
        with writing(self.path):
            self._work.mkdir(parents=True, exist_ok=True)
            write_atomically(self._work / _PLAN, json.dumps(wanted).encode())
        return False

    def kept(self, number: int) -> Done | None:
        """What is known of a shard that was finished before and is still whole."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            done = Done(**json.loads(self._note(number).read_bytes()))
            if not done.images or file_checksum(self.shard(number)) == done.checksum:
                return done
        return None

    def write(self, number: int, samples: Iterable[Sample], tally: Tally) -> Done:
        """Write a shard; the tally is complete once the samples are. ValueError where the disk refuses."""
        images, checksum = write_shard(self.shard(number), samples)
        done = Done(tally.taken, images, checksum, tally.bad)
        with writing(self.shard(number)):
            write_atomically(self._note(number), json.dumps(vars(done)).encode())
        return done

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        return self.path / f"shard-{number:06d}.tar"

    def finish(self, plan: Plan, done: list[Done], classes: tuple[str, ...] | None) -> None:
        """Write the index and the list of bad files, and clear away what was needed only until now."""
        numbers = [number for number, shard in enumerate(done) if shard.images]
        paths = [self.shard(number) for number in numbers]
        shards = [
            Shard(path.name, path.stat().st_size, done[number].checksum)
            for path, number in zip(paths, numbers, strict=True)
        ]
        table = table_of(shards, [list_shard(path) for path in paths])
        if table.labels is not None and table.classes is not None and classes is not None:
            # Shards hold the numbers of classes, of which not all need occur.
            occurring = np.array([int(word) for word in table.classes], dtype=np.int64)
            table = replace(table, labels=occurring[table.labels], classes=classes)
        arrays = table.arrays()
        facts = index_facts(table, arrays, vars(plan))
        bad = {name: reason for shard in done for name, reason in shard.bad.items()}
        with writing(self.path):
            if bad:
                lines = "".join(f"{name}\t{reason}\n" for name, reason in sorted(bad.items()))
                write_atomically(self.path / BAD_FILES, lines.encode("utf-8", "backslashreplace"))
            write_atomically(self.path / ARRAYS_FILE, arrays)
            write_atomically(self.path / INDEX_FILE, (json.dumps(facts, indent=1) + "\n").encode())
            self.clear()

    def clear(self) -> None:
        """Remove the notes about finished shards, and what killed processes left behind."""
        self.clear_parts()
        for note in self._work.iterdir():
            note.unlink()
        self._work.rmdir()

    def give_up(self) -> None:
        """Leave nothing behind where there is nothing to write."""
        self.clear()
        self.path.rmdir()

    def clear_parts(self) -> None:
        """Remove half-written files; nobody may be writing."""
        for folder in (self.path, self._work):
            for part in folder.glob(".*.part"):
                part.unlink(missing_ok=True)

    def damaged(self) -> list[str]:
        """Names of the shards of a finished folder that are not what its index says. ValueError where it is none."""
        rows = read_facts((self.path / INDEX_FILE).read_bytes())["shards"]
        return [row["name"] for row in rows if not _is_whole(self.path / row["name"], row["sha256"])]

    def totals(self) -> tuple[int, int]:
        """Images and shards of a finished folder."""
        facts = read_facts((self.path / INDEX_FILE).read_bytes())
        return facts["images"], len(facts["shards"])

    def _plan(self) -> dict[str, Any] | None:
        """The plan that the folder was claimed for, if it was."""
        with suppress(OSError, ValueError, KeyError):
            note = self._work / _PLAN
            held = json.loads(note.read_bytes()) if note.exists() else None
            if held is None:
                held = read_facts((self.path / INDEX_FILE).read_bytes())["plan"]
            return held if isinstance(held, dict) else None
        return None

    def _note(self, number: int) -> Path:
        return self._work / f"{number:06d}.json"


def _is_whole(path: Path, checksum: str) -> bool:
    try:
        return file_checksum(path) == checksum
    except OSError:
        return False
