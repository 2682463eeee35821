"""A supervised run in a folder: trained by the one loop, scored on the way and at the end, kept as a model file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console

from unmask import __version__
from unmask.loggers.outlets import check_trackers
from unmask.models.pretrained import PretrainedEncoder, open_encoder
from unmask.pretrain import random_start
from unmask.report.headline import has_headline, headline
from unmask.report.log import Record, of_kind, read_log
from unmask.run_folder import RunFolder
from unmask.run_loop import Batches, Job, Outcome, RunState, run_loop
from unmask.supervised.config import SupervisedConfig
from unmask.supervised.subject import Result, Subject
from unmask.trainee import B
from unmask.training.checkpoint import write_atomically
from unmask.training.signals import StopRequest
from unmask.training.trainer import Trainer, choose_device

Build = Callable[[SupervisedConfig, PretrainedEncoder], Subject[Any]]


def build_subject(config: SupervisedConfig, start: PretrainedEncoder, build: Build) -> Subject[Any]:
    """The task at its start, which follows from the encoder and the seed alone."""
    torch.manual_seed(config.training.seed)
    return build(config, start)


def train_supervised(
    config: SupervisedConfig, start: PretrainedEncoder, build: Build, folder: RunFolder, console: Console
) -> Outcome:
    """Run `config` in `folder` on the encoder `start`, from its newest checkpoint if it has one.

    ValueError for whatever the user gave that cannot work; NonFiniteLoss where training breaks down.
    """
    training = config.training
    check_trackers(training.log)
    device = choose_device(training.device)
    with StopRequest() as stop:
        subject = build_subject(config, start, build)
        if subject.samples < training.batch_size:
            raise ValueError(
                f"a batch of {training.batch_size} is larger than the data: there are {subject.samples} train images"
            )
        trainer = Trainer(
            subject.trainee, training, steps_per_epoch=subject.samples // training.batch_size, device=device
        )
        folder.claim(config)
        return run_loop(_SupervisedJob(config, folder, subject, device), trainer, folder, console, stop)


def final_score(folder: RunFolder) -> dict[str, Any]:
    """The last score in the log of a finished run. Other evaluations of its model may stand in the log behind it."""
    scores: dict[str, Any] = own_scores(folder, read_log(folder.log_file))[-1]
    return scores


def own_scores(folder: RunFolder, records: list[Record]) -> list[dict[str, Any]]:
    """The scores that the run itself has logged, in order, without those of other evaluations of its model."""
    protocol = folder.values()["protocol"]
    own = [
        record
        for record in records
        if record.get("kind") == "evaluation" and record["name"] == protocol and has_headline(record)
    ]
    return [record["score"] for record in of_kind(own, "evaluation")]


class _SupervisedJob(Job[B]):
    word = "training"

    def __init__(self, config: SupervisedConfig, folder: RunFolder, subject: Subject[B], device: torch.device) -> None:
        self.config = config
        self.folder = folder
        self.subject = subject
        self.device = device

    @property
    def data(self) -> str:
        return self.config.data

    @property
    def samples(self) -> int:
        return self.subject.samples

    def finished_before(self) -> bool:
        return (self.folder.path / self.subject.file_name).exists()

    def batches(self, first: int, last: int, mine: range) -> Batches[B]:
        return self.subject.batches(first, last, mine, self.config.training, self.device)

    def begin(self, run: RunState) -> None:
        """Nothing is measured before training: a new head knows nothing."""

    def due(self, run: RunState, *, done: bool) -> bool:
        every = round(self.config.training.evaluate_every * run.steps_per_epoch)
        return done or (every > 0 and run.trainer.step % every == 0)

    def look(self, run: RunState, *, done: bool) -> None:
        result: Result = self.subject.score(self.config.training.workers)
        score = result.as_dict()
        run.log("evaluation", name=self.config.protocol, network=self.config.start, score=score)
        name, value, _ = headline(score)
        run.say(f"epoch {run.trainer.step / run.steps_per_epoch:.0f}: {name} {value:.1f} %")

    def values(self) -> dict[str, Any]:
        return {}

    def restore(self, values: dict[str, Any]) -> None:
        """Nothing but the trainer's state lasts from step to step."""

    def finish(self, run: RunState) -> Callable[[], object]:
        facts = {
            "protocol": self.config.protocol,
            "encoder_from": self.config.encoder,
            "start": self.config.start,
            "data": self.config.data,
            "version": __version__,
        }
        return partial(write_atomically, self.folder.path / self.subject.file_name, *self.subject.file(facts))


def start_encoder(config: SupervisedConfig) -> PretrainedEncoder:
    """The encoder that a configuration begins with: as it was pre-trained, or at its random start."""
    trained = open_encoder(config.encoder)
    return trained if config.start == "pretrained" else random_start(config.encoder, trained)
