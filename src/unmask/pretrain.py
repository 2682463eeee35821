"""Pre-training: the one loop, from a configuration to a finished encoder.

Forward, backward, clip, step and target live in `Trainer.train_step`; around it, here: resume, log, evaluate, check
health, save, stop when asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from time import monotonic
from typing import Any, Literal

import torch
from rich.console import Console

from unmask import __version__
from unmask.config import RunConfig
from unmask.data.batch import Batch
from unmask.data.loader import CropLoader, TooManyBadFiles
from unmask.data.sources import Source, open_source
from unmask.data.statistics import first_readable
from unmask.evaluation.health import Health, diagnose, probe
from unmask.evaluation.knn import KnnConfig, knn
from unmask.evaluation.protocols import encoder_features, labelled_or_none
from unmask.masking import masked_count
from unmask.methods import find_method
from unmask.methods.base import MaskedMethodConfig, Method
from unmask.models.convolutional import ConvEncoder, refuse_masks
from unmask.models.pretrained import PretrainedEncoder, encoder_file
from unmask.progress import RunProgress
from unmask.run_folder import RunFolder
from unmask.training.checkpoint import (
    checkpoint_path,
    prune_checkpoints,
    save_checkpoint,
    saved_steps,
    write_atomically,
)
from unmask.training.signals import StopRequest
from unmask.training.trainer import NonFiniteLoss, Trainer, choose_device
from unmask.views import Views

PROBE_IMAGES = 256
HEALTH_CHECKS = 20


@dataclass(frozen=True)
class Outcome:
    """How a run ended: finished, or stopped by a signal with everything saved."""

    kind: Literal["finished", "stopped"]
    step: int
    signal: str | None = None


def build_method(config: RunConfig) -> Method:
    """The method of a run at its random start, which follows from the seed alone."""
    torch.manual_seed(config.training.seed)
    return find_method(config.method)(config.settings)


def exported_encoder(method: Method, origin: str) -> PretrainedEncoder:
    """What a method has learnt, ready for evaluation. The encoder is shared with the method, not copied."""
    return PretrainedEncoder(encoder=method.exported(), mean=method.config.mean, std=method.config.std, origin=origin)


def pretrain(config: RunConfig, folder: RunFolder, console: Console) -> Outcome:
    """Run `config` in `folder`, from its newest checkpoint if it has one.

    ValueError for whatever the user gave that cannot work; NonFiniteLoss where training breaks down.
    """
    training = config.training
    device = choose_device(training.device)
    source = open_source(config.data)
    if len(source) < training.batch_size:
        raise ValueError(
            f"a batch of {training.batch_size} is larger than the data: {config.data} has {len(source)} images"
        )
    with StopRequest() as stop:
        first_readable(source, channels=config.settings.encoder.channels)
        method = build_method(config)
        # A mask that the grid of patches cannot have is refused before anything is written.
        if isinstance(config.settings, MaskedMethodConfig):
            if isinstance(method.exported(), ConvEncoder):
                refuse_masks(config.settings.encoder.name)
            masked_count(config.settings.mask, method.exported().grid)
        trainer = Trainer(method, training, steps_per_epoch=len(source) // training.batch_size, device=device)
        folder.claim(config)
        return _Run(config, folder, trainer, source, console, stop).go()


class _Run:
    """The state of a run beside the trainer's: time, bad files, health at the start."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        trainer: Trainer,
        source: Source,
        console: Console,
        stop: StopRequest,
    ) -> None:
        self.config = config
        self.folder = folder
        self.trainer = trainer
        self.source = source
        self.console = console
        self.stop = stop
        self.saved_step: int | None = None
        self.elapsed = 0.0
        self.bad_files: dict[str, str] = {}
        self.start_health: Health | None = None
        self.health_every = max(1, trainer.total_steps // HEALTH_CHECKS)
        self.steps_per_epoch = len(source) // config.training.batch_size
        self.evaluate_every = round(config.training.evaluate_every * self.steps_per_epoch)

    def go(self) -> Outcome:
        trainer, stop = self.trainer, self.stop
        if self.folder.encoder_file.exists() and not saved_steps(self.folder.checkpoints):
            # Finished long ago, and its checkpoints cleared away: not a reason to train anew.
            return Outcome("finished", trainer.total_steps)
        self._resume()
        if trainer.step >= trainer.total_steps:
            self._write_encoder()
            return Outcome("finished", trainer.step)
        with RunProgress(self.console, total=trainer.total_steps, start=trainer.step) as progress:
            probe_views = self._probe_views()
            self._check_health(probe_views, progress.say)
            if trainer.step == 0 and self.evaluate_every:
                self._evaluate("random", progress.say)
            clock = monotonic()
            logged_at, logged_step = clock, trainer.step
            loader = self._loader()
            batches = iter(loader)
            while trainer.step < trainer.total_steps and not stop.asked:
                try:
                    parts = list(islice(batches, self.config.training.accumulate))
                except TooManyBadFiles:
                    self.folder.write_bad_files(self.bad_files | loader.bad_files)
                    raise
                result = trainer.train_step(parts)
                now = monotonic()
                self.elapsed += now - clock
                clock = now
                self.bad_files |= loader.bad_files
                done = trainer.step == trainer.total_steps
                if trainer.step % self.config.training.log_every == 0 or done:
                    seconds = max(now - logged_at, 1e-9)
                    speed = (trainer.step - logged_step) * self.config.training.batch_size / seconds
                    logged_at, logged_step = now, trainer.step
                    self._log(
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
                if trainer.step % self.health_every == 0 or done:
                    self._check_health(probe_views, progress.say)
                if self.evaluate_every and (trainer.step % self.evaluate_every == 0 or done):
                    self._evaluate("pretrained", progress.say)
                if trainer.step % self.config.training.checkpoint_every == 0 or done:
                    self._save()
                spent = monotonic() - aside
                logged_at += spent
                clock += spent
        if trainer.step < trainer.total_steps:
            if self.saved_step != trainer.step:
                self._save()
            return Outcome("stopped", trainer.step, stop.asked)
        self._write_encoder()
        return Outcome("finished", trainer.step)

    def _resume(self) -> None:
        checkpoint, troubles = self.folder.newest_checkpoint(self.trainer.device)
        for sentence in troubles:
            self.console.print(
                f"warning: {sentence}; going back to the checkpoint before it", highlight=False, markup=False
            )
        if checkpoint is None:
            self.folder.forget_after(-1)
            return
        values = checkpoint.values
        if values["samples"] != len(self.source):
            raise ValueError(
                f"{self.config.data} now has {len(self.source)} images, but this run began with {values['samples']}; "
                "restore the data or choose another --out"
            )
        self.trainer.restore(checkpoint)
        self.elapsed = float(values["elapsed"])
        self.bad_files = dict(values["bad_files"])
        self.start_health = None if values["start_health"] is None else Health(**values["start_health"])
        self.saved_step = self.trainer.step
        self.folder.forget_after(self.trainer.step)
        if self.trainer.step < self.trainer.total_steps:
            sentence = f"resuming {self.folder.path} at step {self.trainer.step}"
            self.console.print(sentence, highlight=False, markup=False)

    def _loader(self) -> CropLoader:
        training = self.config.training
        return CropLoader(
            self.source,
            self.trainer.method.crops,
            batch_size=training.batch_size // training.accumulate,
            total_steps=self.trainer.total_steps * training.accumulate,
            start_step=self.trainer.step * training.accumulate,
            seed=training.seed,
            workers=training.workers,
            channels=self.config.settings.encoder.channels,
            pin_memory=self.trainer.device.type == "cuda",
            max_bad_share=training.max_bad_share,
            captions=self.trainer.method.reads_captions,
        )

    def _probe_views(self) -> Views:
        """Two views each of some images, the same ones for the whole run."""
        images = min(PROBE_IMAGES, len(self.source))
        loader = CropLoader(
            self.source,
            self.trainer.method.crops,
            batch_size=images,
            total_steps=1,
            seed=self.config.training.seed + 1,
            workers=0,
            channels=self.config.settings.encoder.channels,
            max_bad_share=1.0,
            captions=self.trainer.method.reads_captions,
        )
        batch: Batch = next(iter(loader)).to(self.trainer.device)
        views = self.trainer.method.make_views(batch)
        assert batch.seed is not None
        if views.target is None:
            views = replace(views, target=self.trainer.method.make_views(replace(batch, seed=batch.seed ^ 1)).online)
        return views

    def _check_health(self, views: Views, say: Callable[[str], None]) -> None:
        assert views.target is not None
        try:
            health = probe(self.trainer.method.exported(), views.online, views.target)
        except ValueError as error:
            # Weights can leave the finite numbers in a step whose loss and gradient are still finite.
            raise NonFiniteLoss(
                f"after step {self.trainer.step} {error}; what was saved before is intact: try a lower --lr, clipping, "
                "or --precision fp32"
            ) from error
        if self.start_health is None:
            self.start_health = health
        warnings = diagnose(health, self.start_health)
        for sentence in warnings:
            say(f"health: {sentence}")
        self._log("health", figures=health.as_dict(), warnings=warnings)

    def _evaluate(self, network: str, say: Callable[[str], None]) -> None:
        halves = labelled_or_none(self.config.data)
        if halves is None:
            return
        encoder = exported_encoder(self.trainer.method, str(self.folder.path))
        training = encoder.encoder.training
        encoder.encoder.eval()
        train, test = (encoder_features(encoder, half, workers=self.config.training.workers) for half in halves)
        encoder.encoder.train(training)
        score = knn(train, test, KnnConfig())
        say(f"epoch {self.trainer.step / self.steps_per_epoch:.0f}: kNN top-1 {score.top1:.1f} %")
        self._log("evaluation", name="knn", network=network, score=score.as_dict())

    def _log(self, kind: str, **values: Any) -> None:
        step = self.trainer.step
        record = {"kind": kind, "step": step, "epoch": step / self.steps_per_epoch, "time": self.elapsed}
        self.folder.append(record | values)

    def _save(self) -> None:
        values = {
            "samples": len(self.source),
            "elapsed": self.elapsed,
            "bad_files": self.bad_files,
            "start_health": None if self.start_health is None else self.start_health.as_dict(),
        }
        path = checkpoint_path(self.folder.checkpoints, self.trainer.step)
        save_checkpoint(path, self.trainer.state(values))
        self.saved_step = self.trainer.step
        prune_checkpoints(self.folder.checkpoints, self.trainer.step, keep_every=self.config.training.keep_every)
        self.folder.write_bad_files(self.bad_files)

    def _write_encoder(self) -> None:
        settings = self.config.settings
        facts = {"method": self.config.method, "version": __version__, "data": self.config.data}
        tensors, metadata = encoder_file(
            self.trainer.method.exported(), mean=settings.mean, std=settings.std, facts=facts
        )
        write_atomically(self.folder.encoder_file, tensors, metadata)
