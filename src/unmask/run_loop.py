"""The one loop of every training run: resume, step, log, look, save, stop when asked.

Forward, backward, clip, step and target live in `Trainer.take_step`, which does not wait for a GPU: figures are settled
when something is due that shows or saves them. What a run is about beside its steps (batches,
what is looked at on the way, what is left at the end) is its `Job`: pre-training, fine-tuning, a tokenizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from time import monotonic, sleep
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from rich.console import Console

from unmask.data.bad_files import TooManyBadFiles
from unmask.errors import Failure
from unmask.loggers.outlets import Outlets
from unmask.progress import RunProgress
from unmask.ranks import any_rank, from_all_ranks, rank, world_size
from unmask.run_folder import RunFolder
from unmask.trainee import B
from unmask.training.checkpoint import Checkpoint, checkpoint_path, keep_file, prune_checkpoints, save_checkpoint
from unmask.training.left_out import LeftOut
from unmask.training.run_lock import sole_owner
from unmask.training.signals import StopRequest
from unmask.training.spikes import SpikeWatch
from unmask.training.trainer import NonFiniteLoss, Trainer
from unmask.training.watch import Watch, unwatched_run

SETTLE_EVERY = 100
"""Steps after which their figures are read at the latest, however rare log and checkpoints are."""


MOST_KEPT = 5
"""Steps that are kept for replay, each as large as a checkpoint."""
DISK_PAUSE = 5.0
"""Seconds between attempts to write to a disk that refuses."""


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
    def batches(self, first: int, last: int, mine: range) -> Batches[B]:
        """This rank's parts (`mine`) of the batches of the steps from `first` up to but not including `last`."""

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
    def finish(self, run: RunState) -> Callable[[], object]:
        """What writes the things that the run leaves behind; called again when a finished run is started again.

        Where weights are sharded every rank calls it, and the first one alone what it returns.
        """


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


def run_loop(
    job: Job[B],
    trainer: Trainer[B],
    folder: RunFolder,
    console: Console,
    stop: StopRequest,
    watch: Watch | None = None,
) -> Outcome:
    """Train to the end, or to a stop, from the newest checkpoint of `folder` if it has one.

    Of several ranks the first one alone looks, logs and saves; where weights are sharded, all look and take part in
    saving, as none could do it alone. ValueError where another process trains in the folder.
    """
    watch = watch or unwatched_run()
    loop = _Loop(job, trainer, folder, console, stop, watch)
    with sole_owner(folder.path) if rank() == 0 else nullcontext():
        try:
            outcome = loop.go()
        except BaseException:
            loop.outlets.end("stopped")
            raise
        # From here on nobody is waited for: the first rank may take its time over a report, the others end.
        watch.end()
        loop.outlets.end(outcome.kind)
    return outcome


class _Loop(RunState, Generic[B]):
    def __init__(
        self,
        job: Job[B],
        trainer: Trainer[B],
        folder: RunFolder,
        console: Console,
        stop: StopRequest,
        watch: Watch,
    ) -> None:
        self.job = job
        self.trainer = trainer
        self.folder = folder
        self.console = console
        self.stop = stop
        self.watch = watch
        self.chief = rank() == 0
        self.looks = self.chief or trainer.sharded
        self.left_out = LeftOut(trainer.config.max_nonfinite)
        self.spikes = SpikeWatch()
        self.saved_step: int | None = None
        self.elapsed = 0.0
        self.bad_files: dict[str, str] = {}
        self.steps_per_epoch = job.samples // trainer.config.batch_size
        self._progress: RunProgress | None = None
        self.outlets = Outlets(folder.path, trainer.config.log if self.chief else (), self.say)

    def say(self, sentence: str) -> None:
        if not self.chief:
            return
        if self._progress is None:
            self.console.print(sentence, highlight=False, markup=False)
        else:
            self._progress.say(sentence)

    def log(self, kind: str, **values: Any) -> None:
        step = self.trainer.step
        record = {"kind": kind, "step": step, "epoch": step / self.steps_per_epoch, "time": self.elapsed}
        if self.chief:
            self._patiently(lambda: self.folder.append(record | values))
            self.outlets.logged()

    def go(self) -> Outcome:
        trainer = self.trainer
        if self.job.finished_before() and not self.folder.has_checkpoints():
            # Finished long ago, and its checkpoints cleared away: not a reason to train anew.
            self._open_outlets()
            return Outcome("finished", trainer.total_steps)
        self._resume()
        self._open_outlets()
        if trainer.step < trainer.total_steps:
            with RunProgress(self.console, self.job.word, total=trainer.total_steps, start=trainer.step) as progress:
                self._progress = progress
                self._steps(progress)
                self._progress = None
        if trainer.step < trainer.total_steps:
            if self.saved_step != trainer.step:
                self._save()
            self._wait_for_the_first()
            return Outcome("stopped", self.saved_step or 0, self.stop.asked or "another rank's signal")
        if self.looks:
            write = self.job.finish(self)
            if self.chief:
                self._patiently(write)
        self._wait_for_the_first()
        return Outcome("finished", trainer.step)

    def _open_outlets(self) -> None:
        if self.chief:
            device = self.trainer.device
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            self.outlets.start({"device": name, "devices": world_size()})

    def _steps(self, progress: RunProgress) -> None:
        trainer, config = self.trainer, self.trainer.config
        if self.looks:
            self.watch.mark(trainer.step, "measuring or saving")
            trainer.at_hand(lambda: self.job.begin(self))
        clock = monotonic()
        logged_at, logged_step = clock, trainer.step
        loader = self.job.batches(trainer.step, trainer.total_steps, trainer.mine)
        batches = iter(loader)
        while trainer.step < trainer.total_steps and not self._told_to_stop():
            self.watch.mark(trainer.step, "loading data")
            try:
                parts = list(islice(batches, len(trainer.mine)))
            except TooManyBadFiles:
                self.folder.write_bad_files(self.bad_files | dict(loader.bad_files))
                raise
            self.watch.mark(trainer.step, "computing")
            taken = self._take_step(parts)
            self.bad_files |= loader.bad_files
            done = trainer.step == trainer.total_steps
            log_due = (trainer.step % config.log_every == 0 or done) and taken
            look_due = self.job.due(self, done=done)
            save_due = trainer.step % config.checkpoint_every == 0 or done
            if log_due or look_due or save_due or trainer.step % SETTLE_EVERY == 0:
                self._settle()
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
                jump = self.spikes.note(result.loss)
                if jump is not None:
                    self.say(f"health: step {trainer.step}: {jump}")
                    self.log("spike", loss=result.loss, warning=jump)
            # What follows is not training: its time is left out of the speed.
            aside = monotonic()
            if look_due or save_due:
                self.watch.mark(trainer.step, "measuring or saving")
            if look_due and self.looks:
                trainer.at_hand(partial(self.job.look, self, done=done))
            if save_due:
                self._save()
            spent = monotonic() - aside
            logged_at += spent
            clock += spent

    def _told_to_stop(self) -> bool:
        """Whether any rank was: all must end at the same step."""
        self.watch.mark(self.trainer.step, "waiting for the others")
        return any_rank(self.stop.asked is not None)

    def _wait_for_the_first(self) -> None:
        """Until it has written everything: whoever starts the ranks would take the end of another for a failure."""
        self.watch.mark(self.trainer.step, "waiting for the others")
        any_rank(False)

    def _settle(self) -> None:
        while True:
            try:
                return self.trainer.settle()
            except NonFiniteLoss as error:
                self._leave_out(error)

    def _take_step(self, parts: list[B]) -> bool:
        """Whether the step was taken: one whose figures are not finite is left out."""
        try:
            self.trainer.take_step(parts)
            return True
        except NonFiniteLoss as error:
            self._leave_out(error)
            return False
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            config = self.trainer.config
            raise Failure(
                f"{self.trainer.device} has not enough memory for a step of {config.part_size} "
                f"images; the run so far is kept in {self.folder.path}: try --batch-size auto, which finds what fits, "
                "or a smaller --batch-size"
            ) from error

    def _leave_out(self, error: NonFiniteLoss) -> None:
        """Go on without a step, or without all since the last checkpoint; NonFiniteLoss again where that is in vain."""
        trainer = self.trainer
        assert error.step is not None
        if self.chief:
            self._keep_for_replay(error.step)
        checkpoint = None
        if back := self.left_out.note(error):
            checkpoint, _ = self.folder.newest_checkpoint(trainer.checkpoint_device)
        to = {} if checkpoint is None else {"back": int(checkpoint.values["step"])}
        self.log("left out", number=error.step, reason=error.what, **to)
        if trainer.step == error.step:
            trainer.leave_out()
        if not back:
            self.say(f"warning: step {error.step} is left out: {error.what}")
            return
        if checkpoint is None:
            raise error
        now = trainer.step
        trainer.restore(checkpoint)
        self.say(
            f"warning: {error.what} at step {error.step}; the weights of step {trainer.step} come back, and "
            "the batches since then are left out"
        )
        trainer.step = now
        # A kill from here on must not lead back to the batches that broke the weights.
        self._save()

    def _keep_for_replay(self, step: int) -> None:
        """The weights as the step found them, or (also where no rank has them whole) those of the last checkpoint, from
        which replay can get there: batches follow from (seed, step) alone."""
        if len(self.folder.steps_left_out()) >= MOST_KEPT:
            return
        if self.trainer.step == step and not self.trainer.sharded:
            state = self.trainer.state(self._values())
            self._patiently(lambda: save_checkpoint(self.folder.left_out(step), state))
        elif self.saved_step is not None:
            saved = checkpoint_path(self.folder.checkpoints, self.saved_step)
            kept = self.folder.left_out(self.saved_step)
            self._patiently(lambda: keep_file(saved, kept))

    def _patiently(self, write: Callable[[], object]) -> None:
        """Write; where the disk refuses, try again for as long as the user has asked for."""
        config = self.trainer.config
        until = monotonic() + 60 * config.wait_for_disk
        while True:
            try:
                write()
                return
            except ValueError as error:
                if monotonic() >= until or self.stop.asked:
                    raise
                self.say(f"warning: {error}; trying again for {(until - monotonic()) / 60:.0f} more minutes")
                self.watch.mark(self.trainer.step, "measuring or saving")
                sleep(min(DISK_PAUSE, max(0.0, until - monotonic())))

    def _resume(self) -> None:
        checkpoint, troubles = self.folder.newest_checkpoint(self.trainer.checkpoint_device)
        for sentence in troubles:
            self.say(f"warning: {sentence}; going back to the checkpoint before it")
        steps = from_all_ranks(-1 if checkpoint is None else int(checkpoint.values["step"]))
        if len(set(steps)) > 1:
            raise Failure(
                f"the ranks do not see the same checkpoints in {self.folder.path} (their newest are of steps "
                f"{', '.join(map(str, steps[:8]))}): all need the same folder"
            )
        if checkpoint is None:
            if self.chief:
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
        if self.chief:
            self.folder.forget_after(self.trainer.step)
        if self.trainer.step < self.trainer.total_steps:
            self.say(f"resuming {self.folder.path} at step {self.trainer.step}")

    def _save(self) -> None:
        self._settle()
        for bad in from_all_ranks(self.bad_files):
            self.bad_files |= bad
        if self.looks:
            state = self.trainer.state(self._values())
            if self.chief and not self.trainer.is_finite(state):
                # Whatever spoilt them, the checkpoint before is what they can come back from.
                self.say(f"warning: step {self.trainer.step} is not saved: its weights are not finite")
                return
            if self.chief:
                self._patiently(lambda: self._write_checkpoint(state))
        self.saved_step = self.trainer.step

    def _values(self) -> dict[str, Any]:
        return self.job.values() | {
            "samples": self.job.samples,
            "elapsed": self.elapsed,
            "bad_files": self.bad_files,
        }

    def _write_checkpoint(self, state: Checkpoint) -> None:
        path = checkpoint_path(self.folder.checkpoints, self.trainer.step)
        save_checkpoint(path, state)
        prune_checkpoints(self.folder.checkpoints, self.trainer.step, keep_every=self.trainer.config.keep_every)
        self.folder.write_bad_files(self.bad_files)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """torch has an error of its own for a GPU that is full, and a sentence for a processor."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
