"""Supervised runs so small that a test can afford many."""

from __future__ import annotations

import io
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import save_file

from tiny_classifiers import BARE, NETWORKS, tiny_pretrained
from unmask.models.pretrained import encoder_file
from unmask.run_folder import RunFolder
from unmask.run_loop import Outcome
from unmask.supervised.config import SupervisedConfig
from unmask.supervised.protocols import build
from unmask.supervised.run import start_encoder, train_supervised
from unmask.tasks.classification import ClassificationTask, ClassifierConfig
from unmask.training.trainer import TrainingConfig

FULL = replace(
    BARE,
    mixup=0.8,
    cutmix=1.0,
    smoothing=0.1,
    randaugment="rand-m9-mstd0.5-inc1",
    erasing=0.5,
    flip=0.5,
    drop_path=0.3,
    average=0.7,
)
"""Everything that draws, and all that a checkpoint must hold."""


def write_encoder(path: Path, network: str = "vit") -> Path:
    """The file of a tiny encoder."""
    trained = tiny_pretrained(NETWORKS[network])
    tensors, metadata = encoder_file(trained.encoder, mean=trained.mean, std=trained.std, facts={"method": "mae"})
    save_file(tensors, path, metadata=metadata)
    return path


def supervised(data: Path, encoder: Path, settings: ClassifierConfig = BARE, **training: Any) -> SupervisedConfig:
    """A run of 2 epochs with batches of 4, every step in the log; `training` changes that."""
    usual: dict[str, Any] = {"epochs": 2, "batch_size": 4, "workers": 0, "device": "cpu", "log_every": 1}
    return SupervisedConfig(
        protocol="finetune",
        encoder=str(encoder),
        start="pretrained",
        data=str(data),
        settings=settings,
        training=TrainingConfig(**usual | training),
    )


def run(config: SupervisedConfig, path: Path) -> tuple[Outcome, str]:
    """The outcome of a run, and what was said meanwhile."""
    said = io.StringIO()
    outcome = train_supervised(
        config, start_encoder(config), build, RunFolder(path), Console(file=said, soft_wrap=True)
    )
    return outcome, said.getvalue()


def stop_in_step(monkeypatch: pytest.MonkeyPatch, step: int, total: int) -> None:
    """Send SIGTERM in the middle of a step (counted from 1) of a classification task."""
    whole = ClassificationTask.update_target

    def update_target(self: ClassificationTask, progress: float) -> None:
        if round(progress * total) == step - 1:
            signal.raise_signal(signal.SIGTERM)
        whole(self, progress)

    monkeypatch.setattr(ClassificationTask, "update_target", update_target)
