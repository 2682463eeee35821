"""trackio. Its own variables say where to: TRACKIO_DIR, TRACKIO_SPACE_ID; TRACKIO_PROJECT names the project."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unmask.loggers.base import Logger, Run, Step

if TYPE_CHECKING:
    import trackio


class TrackioLogger(Logger):
    """A run of the project `unmask`, unless TRACKIO_PROJECT says otherwise. Sentences are logged as `note`."""

    def __init__(self) -> None:
        self._run: trackio.Run | None = None

    def open(self, run: Run) -> str:
        import trackio

        # trackio tells runs of a project by their names alone.
        name = run.known_as or f"{run.name}-{run.identity}"
        project = os.environ.get("TRACKIO_PROJECT", "unmask")
        self._run = trackio.init(project=project, name=name, resume="allow", config=dict(run.facts), embed=False)
        return name

    @property
    def where(self) -> str:
        assert self._run is not None
        return self._run.url or f"trackio show --project {self._run.project}"

    def record(self, step: Step) -> None:
        assert self._run is not None
        texts = {"note": "\n".join(step.notes)} if step.notes else {}
        self._run.log({**step.figures, **texts}, step=step.number)

    def close(self, *, finished: bool) -> None:
        assert self._run is not None
        self._run.finish()
