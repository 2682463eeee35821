"""One process at a time owns a run folder, whatever became of the one before it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from unmask.training.run_lock import NAME, sole_owner


def child_that_owns(folder: Path) -> int:
    """Number of a process that owns the folder until it is killed."""
    pid = os.fork()
    if pid == 0:
        with sole_owner(folder):
            time.sleep(60)
        os._exit(0)
    while not (folder / NAME).exists() or not (folder / NAME).read_text():
        time.sleep(0.01)
    return pid


def test_the_folder_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with sole_owner(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
        assert not (tmp_path / NAME).exists()


def test_another_owner_is_named_and_a_dead_one_forgotten(tmp_path: Path) -> None:
    pid = child_that_owns(tmp_path)
    with (
        pytest.raises(ValueError, match=rf"is in use by process {pid} on .* UTC; wait until that ends"),
        sole_owner(tmp_path),
    ):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / NAME).exists()  # nobody tidied up
    with sole_owner(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


def test_an_owner_whose_note_says_nothing_is_an_owner(tmp_path: Path) -> None:
    pid = child_that_owns(tmp_path)
    (tmp_path / NAME).write_text("what")
    with pytest.raises(ValueError, match="is in use by another process; wait"), sole_owner(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_processes_that_decode_own_nothing(tmp_path: Path) -> None:
    with sole_owner(tmp_path):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
    # The worker outlives its main process, and does not keep the folder from the next one.
    with sole_owner(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write .*gone/\.owner\.json \(no such file or directory\)"):  # noqa: SIM117
        with sole_owner(tmp_path / "gone"):
            pass
