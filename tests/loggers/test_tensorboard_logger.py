"""TensorBoard reads what we write, and sees each step once."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tiny_logs import HEALTH, add_lines, step_line, told, write_run
from unmask.loggers.follow import follow
from unmask.loggers.memory import remember, remembered, tracker_folder


def read(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of a run."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_scalars_texts_and_the_configuration(tmp_path: Path) -> None:
    run = write_run(tmp_path, HEALTH, step_line(10), step_line(20))
    follow(run, "tensorboard", told("finished"))
    found = read(tracker_folder(run, "tensorboard"))
    assert [(point.step, round(point.value, 6)) for point in found.Scalars("loss")] == [(10, 0.090909), (20, 0.047619)]
    assert [point.value for point in found.Scalars("health/feature_std")] == [0.25]
    assert found.Tensors("notes")[0].tensor_proto.string_val == [b"all is one"]
    facts = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"training.epochs" in facts
    assert b"environment.device" in facts
    assert b"hunter22" not in facts


def test_a_step_that_was_written_but_not_noted_is_shown_once(tmp_path: Path) -> None:
    run = write_run(tmp_path, step_line(10), step_line(20))
    folder = tracker_folder(run, "tensorboard")
    follow(run, "tensorboard", told("finished"))
    memory = remembered(folder)
    assert memory is not None
    assert memory.step == 20
    remember(folder, type(memory)(identity=memory.identity, known_as=memory.known_as, step=10))  # killed before it
    add_lines(run, step_line(30))
    follow(run, "tensorboard", told("finished"))
    assert [point.step for point in read(folder).Scalars("loss")] == [10, 20, 30]
