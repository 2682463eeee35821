"""The benchmark of matrix libraries multiplies what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.matrix_library import passes

from benchmarks import matrix_library


def test_both_libraries_make_the_same_products() -> None:
    made = {name: torch.from_numpy(np.asarray(run())) for name, run in passes(5, 8, 12).items()}
    shapes = {"forward": (5, 12), "of inputs": (5, 8), "of weights": (12, 8)}
    for kind, shape in shapes.items():
        assert made[f"torch {kind}"].shape == shape
        torch.testing.assert_close(made[f"torch {kind}"], made[f"numpy {kind}"])


def test_the_whole_benchmark_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_library, "LAYERS", (("tiny", 8, 16, 32),))
    file = tmp_path / "matrix_library.json"
    monkeypatch.setattr(sys, "argv", ["matrix_library", "--rounds", "2", "--out", str(file)])
    threads = torch.get_num_threads()
    try:
        matrix_library.main()
    finally:
        torch.set_num_threads(threads)
    (table,) = json.loads(file.read_text())["tables"]
    assert table["rows"][0][:2] == ["tiny", "8 x 16 x 32"]
    assert all(figure > 0 for figure in table["rows"][0][2:])
