"""Weights & Biases. Its own variables say where to: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unmask.loggers.base import Logger, Run, Step

if TYPE_CHECKING:
    import wandb


class WandbLogger(Logger):
    """A run of the project `unmask`, unless WANDB_PROJECT says otherwise. Sentences are logged as `note`."""

    def __init__(self) -> None:
        self._run: wandb.Run | None = None

    def open(self, run: Run) -> str:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "unmask"),
            name=os.environ.get("WANDB_NAME", run.name),
            id=run.identity,
            resume="allow",
            config=dict(run.facts),
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            # What this process prints or is made of says nothing about the run.
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_code=True, disable_git=True),
        )
        return run.identity

    @property
    def where(self) -> str:
        assert self._run is not None
        if self._run.offline:
            return f"wandb sync {os.path.dirname(self._run.dir)}"
        return self._run.url or "the project's page"

    def record(self, step: Step) -> None:
        assert self._run is not None
        texts = {"note": "\n".join(step.notes)} if step.notes else {}
        # Of a step that it has already the server takes nothing.
        self._run.log({**step.figures, **texts}, step=step.number)

    def close(self, *, finished: bool) -> None:
        assert self._run is not None
        self._run.finish(exit_code=0 if finished else 1)
