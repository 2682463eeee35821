"""From any source to shards, by several processes at once; what a stream gives, one shard after the other.

The order is shuffled once by the seed: each shard then is a random sample of all images, and a run that reads shards in
any order sees mixed batches.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.captions import Captions
from unmask.data.crop import Stream as RandomStream
from unmask.data.crop import sample_generator
from unmask.data.dataset import BadFile
from unmask.data.decode import DecodeError
from unmask.data.huggingface import Stream, image_bytes
from unmask.data.shard_folder import Done, ShardFolder, Tally
from unmask.data.shard_writing import Sample, make_sample, safe_key
from unmask.data.source import Source
from unmask.errors import Failure

_MEASURED = 200  # images whose mean size stands for that of all
_PATIENCE = 0.2  # seconds between looks at whether to stop
_MEGABYTE = 1_000_000
_DIED = "a process that writes shards was ended by the system, most likely because memory ran out: use fewer workers"


class Stopped(Exception):
    """Writing was stopped on request; what is finished stays."""


@dataclass(frozen=True)
class Job:
    """A source on its way into shards: its images in an order, so many a shard."""

    source: Source
    captions: Captions | None
    order: NDArray[np.int64]
    images: int
    folder: ShardFolder

    @property
    def shards(self) -> int:
        """How many shards there will be."""
        return -(-len(self.order) // self.images)

    def finished(self, number: int) -> Done:
        """One shard, written unless it was finished before. ValueError where the disk refuses."""
        kept = self.folder.kept(number)
        if kept is not None:
            return kept
        indices = self.order[number * self.images : (number + 1) * self.images].tolist()
        tally = Tally()
        return self.folder.write(number, self._samples(indices, tally), tally)

    def _samples(self, indices: list[int], tally: Tally) -> Iterator[Sample]:
        labels = self.source.labels
        for index in indices:
            tally.taken += 1
            key = safe_key(relative_name(self.source, index))
            try:
                yield make_sample(
                    key,
                    self.source.read(index),
                    label=None if labels is None else int(labels[index]),
                    captions=() if self.captions is None else self.captions[index],
                )
            except (OSError, DecodeError) as error:
                note = BadFile.of(self.source, index, error)
                tally.bad[note.path] = note.reason


def relative_name(source: Source, index: int) -> str:
    """The name of an image below what the user named, or its last part where it lies elsewhere."""
    path = (
        re.sub(r"(.*/)?[^/]+\.tar/(?=.)", "", source.path(index)) if source.shards is not None else source.path(index)
    )
    named = os.path.expanduser(source.name)
    for root in (source.name, named, os.path.dirname(named)):
        if root and path.startswith(root.rstrip("/") + "/"):
            return path[len(root.rstrip("/")) + 1 :]
    return path if not path.startswith("/") else os.path.basename(path)


def shuffled(count: int, seed: int | None) -> NDArray[np.int64]:
    """Positions in the order of the seed, or as they are without one."""
    if seed is None:
        return np.arange(count)
    return sample_generator(seed, 0, 0, RandomStream.ORDER).permutation(count)


def names_checksum(source: Source) -> str:
    """A checksum of the names of all images: other images are other shards."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.path(index).encode("utf-8", "backslashreplace") + b"\0")
    return digest.hexdigest()


def images_for(source: Source, megabytes: float) -> int:
    """About how many images make so many megabytes, by the mean of a few of them. ValueError where none can be read."""
    sizes = []
    for index in np.unique(np.linspace(0, len(source) - 1, _MEASURED).astype(np.int64)).tolist():
        try:
            sizes.append(len(make_sample("", source.read(index)).content))
        except (OSError, DecodeError):
            continue
    if not sizes:
        raise ValueError(f"no readable image in {source.name}")
    return max(1, round(megabytes * _MEGABYTE / float(np.mean(sizes))))


def write_source(job: Job, workers: int, *, stop: Callable[[], bool], report: Callable[[int], None]) -> list[Done]:
    """Write all shards of a job; `report` is told how many are finished.

    Raises Stopped when `stop()` says so, ValueError where the disk refuses, Failure where a process dies.
    """
    workers = min(max(1, workers), job.shards)
    receiving: dict[Connection, Any] = {}
    done: dict[int, Done] = {}
    try:
        for worker in range(workers):
            here, there = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.Process(
                target=_write_some, args=(job, range(worker, job.shards, workers), there), daemon=True
            )
            process.start()
            there.close()  # the last one to hold it is the process: its end is seen here
            receiving[here] = process
        while len(done) < job.shards:
            if stop():
                raise Stopped
            for ready in wait(list(receiving), _PATIENCE):
                assert isinstance(ready, Connection)
                try:
                    number, outcome = ready.recv()
                except EOFError:
                    if receiving.pop(ready).exitcode or not receiving:
                        raise Failure(_DIED) from None
                    continue
                if isinstance(outcome, str):
                    raise ValueError(outcome)
                done[number] = outcome
                report(len(done))
    finally:
        for process in receiving.values():
            process.terminate()
            process.join()
        job.folder.clear_parts()
    return [done[number] for number in range(job.shards)]


def _write_some(job: Job, numbers: range, answer: Connection) -> None:
    """What a process does: its shards one after the other, each told about; a sentence where the disk refuses."""
    # Ctrl-C and a cluster's warning reach every process; the main one decides, and then ends this one by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in numbers:
        try:
            outcome: Done | str = job.finished(number)
        except ValueError as error:
            outcome = str(error)
        try:
            answer.send((number, outcome))
        except BrokenPipeError:
            return  # the main process is gone


def write_stream(
    folder: ShardFolder,
    stream: Stream,
    *,
    images: int | None,
    megabytes: float | None,
    stop: Callable[[], bool],
    report: Callable[[int], None],
) -> list[Done]:
    """Write a stream as shards of so many images or megabytes; `report` is told how many shards are finished.

    Raises Stopped when `stop()` says so, ValueError where the disk refuses or the stream breaks off.
    """
    rows = enumerate(stream)
    done: list[Done] = []
    try:
        while True:
            kept = folder.kept(len(done))
            if kept is not None:
                done.append(kept)
                for _ in islice(rows, kept.taken):
                    pass
                continue
            first = next(rows, None)
            if first is None:
                return done
            tally = Tally()
            cut = _cut(chain([first], rows), tally, stream.name, images, megabytes, stop)
            done.append(folder.write(len(done), cut, tally))
            report(len(done))
    finally:
        folder.clear_parts()


def _cut(
    rows: Iterator[tuple[int, tuple[Any, int | None]]],
    tally: Tally,
    name: str,
    images: int | None,
    megabytes: float | None,
    stop: Callable[[], bool],
) -> Iterator[Sample]:
    """The images of one shard."""
    size = 0
    for number, (value, label) in rows:
        if stop():
            raise Stopped
        tally.taken += 1
        try:
            sample = make_sample(f"{number:09d}", image_bytes(value), label=None if label in (None, -1) else label)
        except (OSError, DecodeError) as error:
            tally.bad[f"{name}/{number}"] = str(error)
        else:
            yield sample
            size += len(sample.content)
        if tally.taken == images or (megabytes is not None and size >= megabytes * _MEGABYTE):
            return
