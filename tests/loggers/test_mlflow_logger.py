"""MLflow with a store in files: what its own client reads after a stop and a resumption."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_logs import HEALTH, add_lines, step_line, told, write_run
from unmask.loggers.follow import follow
from unmask.loggers.memory import Memory, remember, remembered, tracker_folder


def test_a_stopped_run_goes_on_as_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes it seconds to make
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("HOME", str(tmp_path))
    mlflow = pytest.importorskip("mlflow")
    run = write_run(tmp_path / "run", HEALTH, step_line(10), step_line(20))
    folder = tracker_folder(run, "mlflow")
    client = mlflow.MlflowClient()

    follow(run, "mlflow", told("stopped"))
    memory = remembered(folder)
    assert memory is not None
    assert memory.known_as is not None
    assert client.get_run(memory.known_as).info.status == "KILLED"

    # Killed after the tracker had taken step 20, and before that was noted.
    remember(folder, Memory(identity=memory.identity, known_as=memory.known_as, step=10))
    add_lines(run, step_line(30))
    follow(run, "mlflow", told("finished"))
    experiment = client.get_experiment_by_name("unmask")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == memory.known_as
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    losses = client.get_metric_history(memory.known_as, "losses/contrast")
    assert [(point.step, point.value) for point in losses] == [(10, 0.5), (20, 0.5), (30, 0.5)]
    assert found.data.metrics["health/feature_std"] == 0.25
    assert found.data.tags["note.0"] == "all is one"
    assert found.data.params["training.epochs"] == "2.0"
    assert found.data.params["environment.device"] == "cpu"
    assert "hunter22" not in str(found.data.params)
