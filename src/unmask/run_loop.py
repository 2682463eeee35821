"""The one loop of every training run: resume, step, log, look, save, stop when asked.

Forward, backward, clip, step and target live in `Trainer.take_step`, which does not wait for a GPU: figures are settled
when something is due that shows or saves them. What a run is about beside its steps (batches,
what is looked at on the way, what is left at the end) is its `Job`: pre-training, fine-tuning, a tokenizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from rich.console import Console

from unmask.data.loader import TooManyBadFiles
from unmask.errors import Failure
from unmask.progress import RunProgress
from unmask.run_folder import RunFolder
from unmask.trainee import B
from unmask.training.checkpoint import checkpoint_path, prune_checkpoints, save_checkpoint
from unmask.training.signals import StopRequest
from unmask.training.trainer import Trainer

SETTLE_EVERY = 100
"""Steps after which their figures are read at the latest, however rare log and checkpoints are."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: finished, or stopped by a signal with everything saved."""

    kind: Literal["finished", "stopped"]
    step: int
    signal: str | None = None


BatchOut = TypeVar("BatchOut", covariant=True)


@runtime_checkable
class Batches(Protocol[BatchOut]):
    """A loader: the parts of each step's batch, one after the other, and the files that could not be used so far."""

    @property
    def bad_files(self) -> Mapping[str, str]:
        """Name and reason of every file so far that could not be used."""
        ...

    def __iter__(self) -> Iterator[BatchOut]: ...


class Job(ABC, Generic[B]):
    """What a run is about, beside its steps."""

    word: str
    """What the progress bar calls it."""

    @property
    @abstractmethod
    def data(self) -> str:
        """What the user called the data, for messages."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """Number of images that the run draws from; it must not change between a stop and its resumption."""

    @abstractmethod
    def finished_before(self) -> bool:
        """Whether what the run is to leave behind lies there already, though its checkpoints were cleared away."""

    @abstractmethod
    def batches(self, first: int, last: int) -> Batches[B]:
        """The parts of batches from number `first` up to but not including `last`; `accumulate` of them make a step."""

    @abstractmethod
    def begin(self, run: RunState) -> None:
        """Before the first step that this process takes."""

    @abstractmethod
    def due(self, run: RunState, *, done: bool) -> bool:
        """After a step: whether anything is to be measured."""

    @abstractmethod
    def look(self, run: RunState, *, done: bool) -> None:
        """Measure what is due. Its time does not count as training."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Plain values that the rest of the run depends on, beside the trainer's state."""

    @abstractmethod
    def restore(self, values: dict[str, Any]) -> None:
        """Take back what `values` gave."""

    @abstractmethod
    def finish(self, run: RunState) -> None:
        """Write what the run leaves behind; called again when a finished run is started again."""


class RunState(ABC):
    """What a job may know of its run and do with it."""

    trainer: Trainer[Any]
    folder: RunFolder
    steps_per_epoch: int

    @abstractmethod
    def say(self, sentence: str) -> None:
        """Tell the user."""

    @abstractmethod
    def log(self, kind: str, **values: Any) -> None:
        """Add a line to the log, with the step, the epoch and the time of training."""


def run_loop(job: Job[B], trainer: Trainer[B], folder: RunFolder, console: Console, stop: StopRequest) -> Outcome:
    """Train to the end, or to a stop, from the newest checkpoint of `folder` if it has one."""
    return _Loop(job, trainer, folder, console, stop).go()


class _Loop(RunState, Generic[B]):
    def __init__(
        self, job: Job[B], trainer: Trainer[B], folder: RunFolder, console: Console, stop: StopRequest
    ) -> None:
        self.job = job
        self.trainer = trainer
        self.folder = folder
        self.console = console
        self.stop = stop
        self.saved_step: int | None = None
        self.elapsed = 0.0
        self.bad_files: dict[str, str] = {}
        self.steps_per_epoch = job.samples // trainer.config.batch_size
        self._progress: RunProgress | None = None

    def say(self, sentence: str) -> None:
        if self._progress is None:
            self.console.print(sentence, highlight=False, markup=False)
        else:
            self._progress.say(sentence)

    def log(self, kind: str, **values: Any) -> None:
        step = self.trainer.step
        record = {"kind": kind, "step": step, "epoch": step / self.steps_per_epoch, "time": self.elapsed}
        self.folder.append(record | values)

    def go(self) -> Outcome:
        trainer = self.trainer
        if self.job.finished_before() and not self.folder.has_checkpoints():
            # Finished long ago, and its checkpoints cleared away: not a reason to train anew.
            return Outcome("finished", trainer.total_steps)
        self._resume()
        if trainer.step < trainer.total_steps:
            with RunProgress(self.console, self.job.word, total=trainer.total_steps, start=trainer.step) as progress:
                self._progress = progress
                self._steps(progress)
                self._progress = None
        if trainer.step < trainer.total_steps:
            if self.saved_step != trainer.step:
                self._save()
            return Outcome("stopped", trainer.step, self.stop.asked)
        self.job.finish(self)
        return Outcome("finished", trainer.step)

    def _steps(self, progress: RunProgress) -> None:
        trainer, config = self.trainer, self.trainer.config
        self.job.begin(self)
        clock = monotonic()
        logged_at, logged_step = clock, trainer.step
        loader = self.job.batches(trainer.step * config.accumulate, trainer.total_steps * config.accumulate)
        batches = iter(loader)
        while trainer.step < trainer.total_steps and not self.stop.asked:
            try:
                parts = list(islice(batches, config.accumulate))
            except TooManyBadFiles:
                self.folder.write_bad_files(self.bad_files | dict(loader.bad_files))
                raise
            self._take_step(parts)
            self.bad_files |= loader.bad_files
            done = trainer.step == trainer.total_steps
            log_due = trainer.step % config.log_every == 0 or done
            look_due = self.job.due(self, done=done)
            save_due = trainer.step % config.checkpoint_every == 0 or done
            if log_due or look_due or save_due or trainer.step % SETTLE_EVERY == 0:
                trainer.settle()
            now = monotonic()
            self.elapsed += now - clock
            clock = now
            if log_due:
                result = trainer.latest
                seconds = max(now - logged_at, 1e-9)
                speed = (trainer.step - logged_step) * config.batch_size / seconds
                logged_at, logged_step = now, trainer.step
                self.log(
                    "step",
                    loss=result.loss,
                    losses=result.losses,
                    lr=result.lr,
                    grad_norm=result.gradient_norm,
                    images_per_second=speed,
                )
                progress.update(trainer.step, loss=result.loss, images_per_second=speed)
            # What follows is not training: its time is left out of the speed.
            aside = monotonic()
            if look_due:
                self.job.look(self, done=done)
            if save_due:
                self._save()
            spent = monotonic() - aside
            logged_at += spent
            clock += spent

    def _take_step(self, parts: list[B]) -> None:
        try:
            self.trainer.take_step(parts)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            config = self.trainer.config
            raise Failure(
                f"{self.trainer.device} has not enough memory for a step of {config.batch_size // config.accumulate} "
                f"images; the run so far is kept in {self.folder.path}: try --batch-size auto, which finds what fits, "
                "or a smaller --batch-size"
            ) from error

    def _resume(self) -> None:
        checkpoint, troubles = self.folder.newest_checkpoint(self.trainer.device)
        for sentence in troubles:
            self.say(f"warning: {sentence}; going back to the checkpoint before it")
        if checkpoint is None:
            self.folder.forget_after(-1)
            return
        values = checkpoint.values
        if values["samples"] != self.job.samples:
            raise ValueError(
                f"{self.job.data} now has {self.job.samples} images, but this run began with {values['samples']}; "
                "restore the data or choose another --out"
            )
        self.trainer.restore(checkpoint)
        self.elapsed = float(values["elapsed"])
        self.bad_files = dict(values["bad_files"])
        self.job.restore(values)
        self.saved_step = self.trainer.step
        self.folder.forget_after(self.trainer.step)
        if self.trainer.step < self.trainer.total_steps:
            self.say(f"resuming {self.folder.path} at step {self.trainer.step}")

    def _save(self) -> None:
        values = self.job.values() | {
            "samples": self.job.samples,
            "elapsed": self.elapsed,
            "bad_files": self.bad_files,
        }
        path = checkpoint_path(self.folder.checkpoints, self.trainer.step)
        save_checkpoint(path, self.trainer.state(values))
        self.saved_step = self.trainer.step
        prune_checkpoints(self.folder.checkpoints, self.trainer.step, keep_every=self.trainer.config.keep_every)
        self.folder.write_bad_files(self.bad_files)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """torch has an error of its own for a GPU that is full, and a sentence for a processor."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
