"""The benchmark of indexing: all entries find the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.harness import Timing
from benchmarks.indexing import entries, make_tree, table

from unmask.data.index import cache_folder


def test_every_entry_finds_every_file_and_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_tree(tmp_path / "images", 1200, 7)
    assert len(list(root.iterdir())) == 7
    for entry in entries(root, 1200).values():
        entry()
    assert len(list(cache_folder().iterdir())) == 1


def test_an_entry_that_misses_a_file_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_tree(tmp_path / "images", 20, 2)
    for entry in entries(root, 50).values():
        with pytest.raises(AssertionError):
            entry()


def test_the_table_compares_with_image_folder() -> None:
    timings = {"torchvision ImageFolder": Timing([2.0], [4.0]), "unmask, cached": Timing([0.5], [1.0])}
    assert table(timings, 100, 10).rows == (
        ("torchvision ImageFolder", 2.0, 4.0, 50.0, 1.0),
        ("unmask, cached", 0.5, 1.0, 200.0, 4.0),
    )
