"""The golden cases, and copies of them to spoil."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from unmask.interop.authors.case import Json, Tensors
from unmask.interop.golden import load_tensors, tensor_file

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def golden() -> Path:
    """The folder of golden cases."""
    return GOLDEN


@pytest.fixture
def read_case() -> Callable[[str], tuple[Json, Tensors]]:
    """Reads the JSON and the tensors of a case."""

    def read(name: str) -> tuple[Json, Tensors]:
        return json.loads((GOLDEN / f"{name}.json").read_text()), load_tensors(tensor_file(GOLDEN / f"{name}.json"))

    return read


@pytest.fixture
def write_case(tmp_path: Path) -> Callable[[Json, Tensors], Path]:
    """Writes a case into a folder of its own; returns the path of its JSON."""

    def write(case: Json, tensors: Tensors) -> Path:
        path = tmp_path / "spoilt.json"
        path.write_text(json.dumps(case))
        save_file({name: value.contiguous() for name, value in tensors.items()}, path.with_suffix(".safetensors"))
        return path

    return write
