"""A run folder belongs to one run, is claimed whole or not at all, and its log survives a kill."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_runs import tiny_config
from unmask.run_folder import EXECUTION, RunFolder, completed, first_difference
from unmask.training.checkpoint import Checkpoint, CheckpointError, checkpoint_path, save_checkpoint
from unmask.training.trainer import TrainingConfig

CPU = torch.device("cpu")
CONFIG = tiny_config("conmim", Path("photos"))


def test_a_new_folder_is_claimed_and_claimed_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "new")
    folder.claim(CONFIG)
    assert folder.config() == CONFIG
    assert {entry.name for entry in folder.path.iterdir()} == {"config.json", "checkpoints"}
    folder.claim(CONFIG)


def test_a_claim_cut_short_by_a_kill_stands_in_nobodys_way(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.claim(CONFIG)  # an empty folder is free
    folder.config_file.rename(folder.path / ".config.json.part")
    folder.checkpoints.rmdir()
    (folder.path / ".config.json.part").write_text('{"form')
    folder.claim(CONFIG)
    assert {entry.name for entry in folder.path.iterdir()} == {"config.json", "checkpoints"}


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=f"^{tmp_path} exists and is not a run folder; choose another --out$"):
        RunFolder(tmp_path).claim(CONFIG)
    with pytest.raises(ValueError, match=r"thesis\.tex exists and is not a run folder; choose another --out$"):
        RunFolder(tmp_path / "thesis.tex").claim(CONFIG)
    with pytest.raises(ValueError, match=r"^cannot make the run folder .* \(not a directory\)$"):
        RunFolder(tmp_path / "thesis.tex" / "run").claim(CONFIG)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=f"^{tmp_path} is not a run folder: it has no config.json$"):
        RunFolder(tmp_path).config()


def test_a_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    RunFolder(tmp_path).claim(CONFIG)
    other = replace(CONFIG, settings=replace(CONFIG.settings, crop_scale=(0.5, 1.0)))
    sentence = (
        rf"^{tmp_path} holds another run \(its settings\.crop_scale is \[0\.08, 1\.0\], not \[0\.5, 1\.0\]\); "
        "choose another --out$"
    )
    with pytest.raises(ValueError, match=sentence):
        RunFolder(tmp_path).claim(other)
    assert RunFolder(tmp_path).config() == CONFIG


def leaves(config: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from (((field.name, *path), leaf) for path, leaf in leaves(value))
        else:
            yield (field.name,), value


def with_leaf(config: Any, path: tuple[str, ...], value: Any) -> Any:
    """The configuration with one value put in past all checks."""
    copy = object.__new__(type(config))
    for field in dataclasses.fields(config):
        object.__setattr__(copy, field.name, getattr(config, field.name))
    inner = value if len(path) == 1 else with_leaf(getattr(config, path[0]), path[1:], value)
    object.__setattr__(copy, path[0], inner)
    return copy


@pytest.mark.parametrize("method", ["conmim", "cmae", "mae", "simmim"])
def test_every_value_that_changes_the_outcome_makes_another_run(method: str) -> None:
    config = tiny_config(method, Path("photos"))
    assert first_difference(config.as_dict(), config.as_dict()) is None
    for path, value in leaves(config):
        difference = first_difference(config.as_dict(), with_leaf(config, path, "other").as_dict())
        if path[0] == "training" and path[1] in EXECUTION:
            assert difference is None
        else:
            shown = list(value) if isinstance(value, tuple) else value
            assert difference == f"its {'.'.join(path)} is {shown}, not other"


def test_what_may_change_on_the_way_is_known_to_training() -> None:
    assert set(EXECUTION) < {field.name for field in dataclasses.fields(TrainingConfig)}


def save(folder: RunFolder, step: int) -> None:
    path = checkpoint_path(folder.checkpoints, step)
    save_checkpoint(path, Checkpoint({"step": torch.tensor(step)}, {"step": step}))


def damage(folder: RunFolder, step: int) -> Path:
    path = checkpoint_path(folder.checkpoints, step)
    path.write_bytes(path.read_bytes()[:-2])
    return path


def test_the_newest_good_checkpoint_is_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.newest_checkpoint(CPU) == (None, [])
    for step in (5, 10, 15, 20):
        save(folder, step)
    newest, troubles = folder.newest_checkpoint(CPU)
    assert newest is not None
    assert (newest.values["step"], troubles) == (20, [])

    bad = [damage(folder, step) for step in (20, 15)]
    newest, troubles = folder.newest_checkpoint(CPU)
    assert newest is not None
    assert newest.values["step"] == 10
    assert len(troubles) == 2
    for path, sentence in zip(bad, troubles, strict=True):
        assert sentence.startswith(f"checkpoint {path} cannot be read (")

    for step in (10, 5):
        damage(folder, step)
    with pytest.raises(CheckpointError, match=r"step_000000020\.safetensors cannot be read"):
        folder.newest_checkpoint(CPU)


RECORDS = [
    {"kind": "health", "step": 0, "epoch": 0.0},
    {"kind": "step", "step": 1, "epoch": 0.5},
    {"kind": "step", "step": 2, "epoch": 1.0},
    {"kind": "evaluation", "step": 2, "epoch": 1.0},
    {"kind": "step", "step": 3, "epoch": 1.5},
]


def test_the_log_forgets_what_was_not_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.last_step() == (0, 0.0)
    folder.forget_after(3)
    assert not folder.log_file.exists()
    for record in RECORDS:
        folder.append(record)
    assert folder.last_step() == (3, 1.5)
    folder.forget_after(2)
    assert [json.loads(line) for line in folder.log_file.read_text().splitlines()] == RECORDS[:4]
    assert folder.last_step() == (2, 1.0)
    folder.forget_after(-1)
    assert folder.log_file.read_text() == ""
    assert folder.last_step() == (0, 0.0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 200))
def test_a_line_cut_short_is_dropped(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("log"))
    for record in RECORDS:
        folder.append(record)
    whole = folder.log_file.read_text()
    folder.log_file.write_text(whole[: len(whole) - cut])
    kept = [json.loads(line) for line in whole[: len(whole) - cut].splitlines() if line.endswith("}")]
    assert folder.last_step()[0] == max([record["step"] for record in kept if record["kind"] == "step"], default=0)
    folder.forget_after(3)
    folder.append({"kind": "step", "step": 4, "epoch": 2.0})
    found = [json.loads(line) for line in folder.log_file.read_text().splitlines()]
    assert found == [*kept, {"kind": "step", "step": 4, "epoch": 2.0}]


def test_bad_files_are_listed_by_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_bad_files({})
    assert not folder.bad_files.exists()
    folder.write_bad_files({"ü/b.png": "it is empty", "a.jpg": "it cannot be decoded"})
    assert folder.bad_files.read_text(encoding="utf-8") == "a.jpg\tit cannot be decoded\nü/b.png\tit is empty\n"


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log_file.mkdir()
    folder.bad_files.mkdir()
    with pytest.raises(ValueError, match=r"^cannot write .*log\.jsonl \(is a directory\)$"):
        folder.append({"kind": "step"})
    with pytest.raises(ValueError, match=r"^cannot write .*bad_files\.txt \(is a directory\)$"):
        folder.write_bad_files({"a": "b"})


@dataclass(frozen=True, kw_only=True)
class _Inner:
    old: int
    new: str = "as before"


@dataclass(frozen=True, kw_only=True)
class _Grown:
    inner: _Inner
    other: _Inner = _Inner(old=3)
    late: tuple[float, ...] = (0.5,)


def test_what_a_configuration_lacks_takes_the_default() -> None:
    """Runs that an older version began must go on: it did not know the fields that have come since."""
    now = _Grown(inner=_Inner(old=1, new="chosen"))
    assert completed({"inner": {"old": 1}}, now) == {
        "inner": {"old": 1, "new": "as before"},
        "other": {"old": 3, "new": "as before"},
        "late": (0.5,),
    }
    assert completed({"inner": 7}, now)["inner"] == 7


def test_an_older_run_goes_on_only_with_what_it_computed(tmp_path: Path) -> None:
    """A field that has come since is taken at its default; another value would be another run."""
    folder = RunFolder(tmp_path / "run")
    config = tiny_config("mae", tmp_path)
    folder.claim(config)
    values = json.loads(folder.config_file.read_text())
    del values["settings"]["optimizer"]["clip_each"]
    folder.config_file.write_text(json.dumps(values))
    folder.claim(config)
    optimizer = dataclasses.replace(config.settings.optimizer, clip_each=True)
    other = dataclasses.replace(config, settings=dataclasses.replace(config.settings, optimizer=optimizer))
    with pytest.raises(ValueError, match=r"its settings\.optimizer\.clip_each is False, not True"):
        folder.claim(other)
