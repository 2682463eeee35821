"""Batches that any number of workers, ranks and restarts reproduce exactly.

A step's batch is cut into parts, which ranks share out; the samples of a part, their crops and its seed are functions
of (seed, step, part) alone, so there is no state to save: to resume, on however many ranks, ask for the next step.

Shape legend: B samples, V crops of one image, C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from unmask.data.bad_files import are_too_many, too_many
from unmask.data.batch import Batch, CropConfig, unwritten
from unmask.data.crop import Stream, sample_generator
from unmask.data.dataset import BadFile, CenterCropDataset, CropDataset, Retouch, Sample
from unmask.data.order import EpochOrder
from unmask.data.sources import Source, captions_of
from unmask.errors import Failure


class WorkerDied(Failure):
    """A process that decodes images was ended by the system."""


@runtime_checkable
class Item(Protocol):
    """What a dataset gives for one sample: the image really used, and the bad files met on the way to it."""

    @property
    def index(self) -> int:
        """Position of the image in the source."""
        ...

    @property
    def bad(self) -> tuple[BadFile, ...]:
        """Files that could not be used."""
        ...

    @property
    def empty(self) -> bool:
        """Whether no readable image was found."""
        ...


@runtime_checkable
class SeededBatch(Protocol):
    """A frozen dataclass with the positions of its samples and a field for the batch's seed."""

    @property
    def indices(self) -> Int64[Tensor, " B"]:
        """Positions of the samples in the source."""
        ...

    @property
    def seed(self) -> int | None:
        """Seed of everything that is drawn for the batch on the device."""
        ...

    def pin_memory(self) -> Any:
        """The same batch in page-locked memory."""
        ...


ItemT = TypeVar("ItemT", bound=Item)
BatchT = TypeVar("BatchT", bound=SeededBatch)


class StepLoader(Generic[ItemT, BatchT]):
    """Batches for the steps `start_step` to `total_steps` - 1, in an order shuffled anew each epoch.

    `dataset` is asked for its items by (epoch, index) and holds `size` of them; `collate` makes a batch of items that
    are not empty. The images of a step are `parts` parts of `batch_size` images; this loader gives those parts whose
    numbers are in `mine` (all of them by default), one after the other; an epoch's last images that fill no step are
    left out. Where `shards` are given, images of a shard are taken at about the same time (see `EpochOrder`).
    `bad_files` (name to reason) grows while iterating; iterating raises TooManyBadFiles when more than the share
    `max_bad_share` of the distinct files seen are bad (asked once 20 files, or all, were seen), and WorkerDied when a
    worker process dies.
    """

    def __init__(
        self,
        dataset: Dataset[ItemT],
        collate: Callable[[list[ItemT]], BatchT],
        *,
        name: str,
        size: int,
        batch_size: int,
        total_steps: int,
        start_step: int = 0,
        seed: int,
        workers: int,
        parts: int = 1,
        mine: range | None = None,
        shards: NDArray[np.int64] | None = None,
        pin_memory: bool = False,
        max_bad_share: float = 0.1,
    ) -> None:
        mine = range(parts) if mine is None else mine
        assert 0 <= mine.start < mine.stop <= parts
        assert start_step >= 0
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, not {batch_size}")
        if batch_size * parts > size:
            raise ValueError(
                f"a batch of {batch_size * parts} images is larger than {name}, "
                f"which has {size}: choose a smaller batch"
            )
        self.bad_files: dict[str, str] = {}
        self.steps_per_epoch = size // (batch_size * parts)
        self._dataset = dataset
        self._collate = _CollateWhole(collate)
        self._size = size
        self._batch_size = batch_size
        self._steps = range(start_step, total_steps)
        self._seed = seed
        self._workers = workers
        self._parts = parts
        self._mine = mine
        self._shards = shards
        self._pin_memory = pin_memory
        self._max_bad_share = max_bad_share
        self._seen = np.zeros(size, dtype=np.bool_)
        self._bad = np.zeros(size, dtype=np.bool_)

    def __len__(self) -> int:
        """Number of batches one iteration gives."""
        return len(self._steps) * len(self._mine)

    def __iter__(self) -> Iterator[BatchT]:
        keys = _StepKeys(
            seed=self._seed,
            steps=self._steps,
            steps_per_epoch=self.steps_per_epoch,
            source_size=self._size,
            batch_size=self._batch_size,
            parts=self._parts,
            mine=self._mine,
            shards=self._shards,
        )
        # One DataLoader for all epochs: nothing drains or starts anew between them.
        loader: Iterable[_Loaded[BatchT]] = DataLoader(
            self._dataset,
            batch_sampler=keys,
            collate_fn=self._collate,
            num_workers=self._workers,
            worker_init_fn=leave_signals_to_main,
            pin_memory=self._pin_memory,
        )
        # Not itertools.product, which would first write down every step, of which a loader without an end has 2^63.
        numbers = ((step, part) for step in self._steps for part in self._mine)
        for (step, part), loaded in zip(numbers, watched(loader), strict=True):
            self._judge(loaded)
            assert loaded.batch is not None
            # Every batch is a dataclass; the protocol cannot say so.
            seeded: Any = replace(loaded.batch, seed=step_seed(self._seed, step, part))  # type: ignore[type-var]
            yield seeded

    def _judge(self, loaded: _Loaded[BatchT]) -> None:
        """Count the files of a batch; raise when too many seen are bad, or a sample found no readable one."""
        if loaded.batch is not None:
            self._seen[loaded.batch.indices.numpy()] = True
        for bad in loaded.bad:
            self._seen[bad.index] = self._bad[bad.index] = True
            self.bad_files[bad.path] = bad.reason
        seen, bad_count = int(self._seen.sum()), int(self._bad.sum())
        most = self._max_bad_share
        if loaded.batch is None or are_too_many(bad_count, seen=seen, total=len(self._seen), most=most):
            path, reason = next(iter(self.bad_files.items()))
            raise too_many(bad_count, seen=seen, most=most, example=f"{path}: {reason}")


class CropLoader:
    """Random crops of the images of a source, with their labels and captions, step by step as in `StepLoader`.

    `captions`: whether batches hold texts, where the source has captions (ValueError where it has some for a part of
    its images). `retouch` changes every crop in the worker (RandAugment).
    """

    def __init__(
        self,
        source: Source,
        crops: tuple[CropConfig, ...],
        *,
        batch_size: int,
        total_steps: int,
        start_step: int = 0,
        seed: int,
        workers: int,
        channels: int = 3,
        parts: int = 1,
        mine: range | None = None,
        pin_memory: bool = False,
        max_bad_share: float = 0.1,
        captions: bool = False,
        retouch: Retouch | None = None,
    ) -> None:
        self._source = source
        self._first_step = start_step
        self._seed = seed
        self._captions = captions_of(source) if captions else None
        self._parts_a_step = parts if mine is None else len(mine)
        self._loader: StepLoader[Sample, Batch] = StepLoader(
            CropDataset(source, crops, channels=channels, seed=seed, retouch=retouch),
            collate_samples,
            name=source.name,
            size=len(source),
            batch_size=batch_size,
            total_steps=total_steps,
            start_step=start_step,
            seed=seed,
            workers=workers,
            parts=parts,
            mine=mine,
            shards=source.shards,
            pin_memory=pin_memory,
            max_bad_share=max_bad_share,
        )
        self.steps_per_epoch = self._loader.steps_per_epoch

    @property
    def bad_files(self) -> dict[str, str]:
        """Name and reason of every file so far that could not be used."""
        return self._loader.bad_files

    def __len__(self) -> int:
        """Number of batches one iteration gives."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self._loader):
            epoch = (self._first_step + number // self._parts_a_step) // self.steps_per_epoch
            yield replace(batch, labels=self._labels(batch.indices), texts=self._texts(batch.indices, epoch))

    def _labels(self, indices_B: Int64[Tensor, " B"]) -> Int64[Tensor, " B"] | None:
        """Labels of these images, where the source has any. Looked up here: workers need not carry them."""
        labels = self._source.labels
        return None if labels is None else torch.from_numpy(labels[indices_B.numpy()])

    def _texts(self, indices_B: Int64[Tensor, " B"], epoch: int) -> tuple[str, ...] | None:
        """One caption of each of these images, in every epoch another choice; None where none are asked for."""
        if self._captions is None:
            return None
        chosen = []
        for index in indices_B.tolist():
            several = self._captions[index]
            place = sample_generator(self._seed, epoch, index, Stream.CAPTION).integers(len(several))
            chosen.append(several[int(place)])
        return tuple(chosen)


class EvalLoader:
    """Central crops of the whole source in its order, as (uint8 images [B, C, H, W], positions [B]).

    Bad files are left out and noted in `bad_files` (name to reason), so a batch may be smaller. Iterating
    raises ValueError when no file at all can be read, RuntimeError when a worker process dies. `retouch` changes every
    crop in the worker (corruptions); `crop_ratio` as in `center_crop`.
    """

    def __init__(
        self,
        source: Source,
        *,
        height: int,
        width: int,
        channels: int = 3,
        batch_size: int,
        workers: int,
        crop_ratio: float | None = None,
        retouch: Retouch | None = None,
    ) -> None:
        self.bad_files: dict[str, str] = {}
        self._dataset = CenterCropDataset(
            source, height=height, width=width, channels=channels, crop_ratio=crop_ratio, retouch=retouch
        )
        self._batch_size = batch_size
        self._workers = workers

    def __iter__(self) -> Iterator[tuple[UInt8[Tensor, "B C H W"], Int64[Tensor, " B"]]]:
        found_any = False
        for batch, _ in self.everything():
            if batch is not None:
                found_any = True
                yield batch.crops[0][:, 0], batch.indices
        if not found_any:
            example = next((f", for example {path}: {why}" for path, why in self.bad_files.items()), "")
            raise ValueError(f"no readable image in {self._dataset.source.name}{example}")

    def everything(self, start: int = 0) -> Iterator[tuple[Batch | None, tuple[BadFile, ...]]]:
        """The images from position `start` on, batch by batch (None where none of its images can be read), with the
        bad files of each. Where all are bad, nothing is raised."""
        loader = DataLoader(
            self._dataset,
            batch_size=self._batch_size,
            sampler=range(start, len(self._dataset)),
            collate_fn=_collate_readable,
            num_workers=self._workers,
            worker_init_fn=leave_signals_to_main,
        )
        for loaded in watched(loader):
            self.bad_files.update({bad.path: bad.reason for bad in loaded.bad})
            yield loaded.batch, loaded.bad


def step_seed(seed: int, step: int, part: int) -> int:
    """63 bits that differ for each (seed, step, part): the seed of all that is drawn on the device."""
    digest = hashlib.blake2b(f"{seed} {step} {part}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class _StepKeys(Sampler[list[tuple[int, int]]]):
    """For each step the (epoch, index) pairs of the samples of this process's parts."""

    def __init__(
        self,
        *,
        seed: int,
        steps: range,
        steps_per_epoch: int,
        source_size: int,
        batch_size: int,
        parts: int,
        mine: range,
        shards: NDArray[np.int64] | None,
    ) -> None:
        self._seed = seed
        self._steps = steps
        self._steps_per_epoch = steps_per_epoch
        self._source_size = source_size
        self._batch_size = batch_size
        self._parts = parts
        self._mine = mine
        self._shards = shards

    def __len__(self) -> int:
        return len(self._steps) * len(self._mine)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        known_epoch, order = -1, None
        for step in self._steps:
            epoch, position = divmod(step, self._steps_per_epoch)
            if order is None or epoch != known_epoch:
                order = EpochOrder(
                    self._seed,
                    epoch,
                    size=self._source_size,
                    batch_size=self._batch_size,
                    parts=self._parts,
                    shards=self._shards,
                )
                known_epoch = epoch
            for part in self._mine:
                yield [(epoch, index) for index in order.take(position, part).tolist()]


@dataclass(frozen=True)
class _Loaded(Generic[BatchT]):
    """What a worker hands over: a batch, None when there were not the images for it, and the bad files."""

    batch: BatchT | None
    bad: tuple[BadFile, ...]

    def pin_memory(self) -> _Loaded[BatchT]:
        """The same in page-locked memory (called by torch's DataLoader)."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class _CollateWhole(Generic[ItemT, BatchT]):
    """A batch of all the items, None when one of them is empty; a class, so that it can be sent to workers."""

    def __init__(self, collate: Callable[[list[ItemT]], BatchT]) -> None:
        self._collate = collate

    def __call__(self, items: list[ItemT]) -> _Loaded[BatchT]:
        whole = not any(item.empty for item in items)
        return _Loaded(self._collate(items) if whole else None, tuple(bad for item in items for bad in item.bad))


def _collate_readable(samples: list[Sample]) -> _Loaded[Batch]:
    """A batch of those samples that are not empty, None when all are."""
    readable = [sample for sample in samples if not sample.empty]
    return _Loaded(
        collate_samples(readable) if readable else None, tuple(bad for sample in samples for bad in sample.bad)
    )


def collate_samples(samples: list[Sample]) -> Batch:
    """One batch of samples none of which is empty."""
    return Batch(
        crops=tuple(_stacked(group) for group in zip(*(sample.crops for sample in samples), strict=True)),
        boxes=tuple(torch.stack(group) for group in zip(*(sample.boxes for sample in samples), strict=True)),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
    )


def _stacked(crops: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(crops, out=unwritten((len(crops), *crops[0].shape), crops[0].dtype))


def watched(loader: Iterable[_Loaded[BatchT]]) -> Iterator[_Loaded[BatchT]]:
    """The batches, with one clear sentence when a worker process has died: where the next batch is asked for."""
    batches = _begun(loader)
    while True:
        try:
            loaded = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not _tells_of_a_dead_worker(error):
                raise
            raise WorkerDied(
                "a data worker died, most likely because memory or shared memory (/dev/shm) ran out: "
                f"use fewer workers or a smaller batch ({str(error).strip()})"
            ) from error
        yield loaded


def _begun(loader: Iterable[_Loaded[BatchT]]) -> Iterator[_Loaded[BatchT]]:
    """The loader's iterator, without torch's handler of SIGCHLD.

    That one raises an error for a dead worker anywhere: in the middle of a step, or of the writing of a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)  # torch sets none there
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before)


def _tells_of_a_dead_worker(error: Exception) -> bool:
    """torch's own sentence, or what befalls whoever fetches from a dead worker what it had made before.

    An error that a living worker met and passed on begins with "Caught".
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    lost = isinstance(error, ConnectionError | FileNotFoundError | EOFError)
    return lost and not str(error).startswith("Caught")


def leave_signals_to_main(worker: int) -> None:
    """Make a worker survive Ctrl-C, a terminated job and a cluster's warning: the main process must finish its step and
    save.

    These signals reach every process of a job. The worker still ends when its main process ends or terminates
    it.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # Not plainly ignored: at exit the main process terminates its workers so, and waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_terminated_by, args=(os.getppid(),), daemon=True).start()


def _end_when_terminated_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
