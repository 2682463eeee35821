"""Checkpoints of others are read without running code; what could run some is refused."""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from unmask.interop.checkpoint_file import read_leaves


class Trap:
    """Whoever unpickles it calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_what_scripts_leave_in_a_checkpoint_becomes_a_stand_in(zipped: bool, tmp_path: Path) -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    counts["steps"] = 3
    weights = OrderedDict(a=torch.arange(3.0))
    weights._metadata = {"version": 1}  # type: ignore[attr-defined]
    state = {
        "model": weights,
        "args": argparse.Namespace(lr=np.float32(1e-3), out=PosixPath("runs"), kinds={1, 2}),
        "history": np.arange(4.0),
        "type": np.dtype("float32"),
        "counts": counts,
        "optimizer": {"state": [{"exp_avg": torch.ones(2)}]},
        "class": int,
    }
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    leaves = read_leaves(tmp_path / "x.pth")
    assert list(leaves) == [("model", "a"), ("optimizer", "state", "0", "exp_avg")]
    assert torch.equal(leaves["model", "a"], torch.arange(3.0))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        (os.mkdir, ("sprung",), "loading such objects can run code"),
        (eval, ("__import__('os').mkdir('sprung')",), "loading such objects can run code"),
        (Path.mkdir, (Path("sprung"),), "cannot be read without running code"),
        (np.save, ("sprung", 1), None),
    ],
)
def test_a_file_that_would_call_something_does_not(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    sentence: str | None,
    zipped: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    trap = {"model": {"a": torch.ones(2)}, "trap": Trap(function, *arguments)}
    torch.save(trap, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    if sentence is None:  # of a known package: a stand-in takes its place
        assert list(read_leaves(tmp_path / "x.pth")) == [("model", "a")]
    else:
        with pytest.raises(ValueError, match=sentence):
            read_leaves(tmp_path / "x.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04", b"\x80\x02}q.", b"\x80\x04N."])
def test_what_is_no_checkpoint_is_refused_with_a_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth"):
        read_leaves(tmp_path / "x.pth")


def test_a_file_cut_short_is_refused_with_a_sentence(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1000)}}, tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[:-500])
    with pytest.raises(ValueError, match="is damaged"):
        read_leaves(tmp_path / "x.pth")


def test_missing_files_folders_and_files_without_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    for path, sentence in (
        (tmp_path / "x", "no file"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.pth", "no tensors"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_leaves(path)


def test_safetensors_files_are_flat(tmp_path: Path) -> None:
    save_file({"cls_token": torch.ones(1, 1, 4)}, tmp_path / "x.safetensors")
    assert list(read_leaves(tmp_path / "x.safetensors")) == [("cls_token",)]
