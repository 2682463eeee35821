"""Where the figures of a run go beside its own log: log.csv always, trackers where the user asks for them.

`log.jsonl` is the record of truth. Each tracker is fed by a process of its own that reads it (`follow.py`), so that
none can stop, slow or spoil the training; what a tracker has missed it is given when the run goes on.
"""

from __future__ import annotations

from unmask.loggers.base import Logger
from unmask.loggers.mlflow import MLflowLogger
from unmask.loggers.tensorboard import TensorBoardLogger
from unmask.loggers.trackio import TrackioLogger
from unmask.loggers.wandb import WandbLogger

TRACKERS: dict[str, type[Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MLflowLogger,
    "trackio": TrackioLogger,
}
"""What `--log` may name."""
