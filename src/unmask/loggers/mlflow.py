"""MLflow. Its own variables say where to: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from unmask.loggers.base import Logger, Run, Step

if TYPE_CHECKING:
    from mlflow import MlflowClient

MOST_PARAMETERS = 100
"""In one request."""
LONGEST = 500
"""Letters of a parameter that every version takes."""


class MLflowLogger(Logger):
    """A run of the experiment `unmask`, or of MLFLOW_EXPERIMENT_NAME. Sentences are tags, `note.STEP`."""

    def __init__(self) -> None:
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._where = ""
        self._newest = -1

    def open(self, run: Run) -> str:
        from mlflow import MlflowClient, get_tracking_uri
        from mlflow.entities import Param

        client = self._client = MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "unmask")
        if run.known_as is None:
            found = client.get_experiment_by_name(experiment)
            place = client.create_experiment(experiment) if found is None else found.experiment_id
            self._run_id = client.create_run(place, run_name=run.name).info.run_id
            facts = [Param(_name(key), str(value)[:LONGEST]) for key, value in run.facts.items()]
            for first in range(0, len(facts), MOST_PARAMETERS):
                client.log_batch(self._run_id, params=facts[first : first + MOST_PARAMETERS])
        else:
            self._run_id = run.known_as
            client.update_run(self._run_id, status="RUNNING")
            # It would keep both of two values of a step.
            self._newest = max((point.step for point in client.get_metric_history(self._run_id, "epoch")), default=-1)
        self._where = f"{get_tracking_uri()}, experiment {experiment}, run {self._run_id}"
        return self._run_id

    @property
    def where(self) -> str:
        return self._where

    def record(self, step: Step) -> None:
        from mlflow.entities import Metric, RunTag

        if step.number <= self._newest:
            return
        assert self._client is not None
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id,
            metrics=[Metric(_name(name), value, now, step.number) for name, value in step.figures.items()],
            tags=[RunTag(f"note.{step.number}", "\n".join(step.notes))] if step.notes else [],
        )

    def close(self, *, finished: bool) -> None:
        assert self._client is not None
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")


def _name(key: str) -> str:
    """A name without the letters that MLflow refuses."""
    return re.sub(r"[^\w./ -]", "_", key)
