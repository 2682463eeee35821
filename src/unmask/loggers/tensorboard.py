"""TensorBoard: event files in the run's folder, for `tensorboard --logdir`. Its own writer needs no torch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from unmask.loggers.base import Logger, Run, Step

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter


class TensorBoardLogger(Logger):
    """Figures as scalars, sentences as texts under `notes`, the configuration as hyper-parameters."""

    def __init__(self) -> None:
        self._writer: EventFileWriter | None = None
        self._folder = ""

    def open(self, run: Run) -> str:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = str(run.folder)
        self._writer = EventFileWriter(self._folder)
        if run.step < 0:
            self._add(0, hparams_pb(dict(run.facts)))
        else:
            # What a process wrote that was killed before it could note it is hidden: it comes once more.
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(step=run.step + 1, wall_time=time.time(), session_log=start))
        return run.identity

    @property
    def where(self) -> str:
        return f"tensorboard --logdir {self._folder}"

    def record(self, step: Step) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.summary_v2 import text_pb

        values = [Summary.Value(tag=name, simple_value=value) for name, value in step.figures.items()]
        self._add(step.number, Summary(value=values))
        if step.notes:
            self._add(step.number, text_pb("notes", "\n\n".join(step.notes)))
        assert self._writer is not None
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        assert self._writer is not None
        self._writer.close()

    def _add(self, step: int, summary: Summary) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        assert self._writer is not None
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=summary))
