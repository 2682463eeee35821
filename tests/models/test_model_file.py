"""What all model files share: a header that is read strictly, tensors without running code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unmask.models.model_file import (
    WRONG_VALUES,
    config_of,
    described,
    filled,
    header_of,
    normalisation_of,
    read_tensors,
)

FILE = Path("some/model.safetensors")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A flat configuration."""

    width: int = 3
    range: tuple[float, float] = (0.0, 1.0)
    name: str | None = None


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).view(2, 3), "b.c": torch.rand(4).half(), "empty": torch.zeros(0, 2)}
    save_file(tensors, tmp_path / "file", metadata={"one": "1"})
    found, metadata = read_tensors(tmp_path / "file")
    assert metadata == {"one": "1"}
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    save_file(tensors, tmp_path / "bare")
    assert read_tensors(tmp_path / "bare")[1] == {}


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04\x95."])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is not a readable safetensors file$"):
        read_tensors(path)
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(ValueError, match=f"^{absent} is not a readable safetensors file$"):
            read_tensors(absent)


def header(text: Any, kind: str = "encoder") -> dict[str, Any]:
    metadata = {"mine": text if isinstance(text, str) else json.dumps(text)}
    return header_of(metadata, "mine", kind, FILE)


def test_a_header_of_its_format_is_read() -> None:
    assert header({"format": 1, "more": [1]}) == {"format": 1, "more": [1]}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"text"', "{}", '{"formats": 3}'])
def test_a_damaged_header_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{FILE} has a damaged header$"):
        header(text)


def test_a_missing_or_foreign_header_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"^{FILE} is not a classifier written by unmask \(its header is missing\)$"):
        header_of({"other": "{}"}, "mine", "classifier", FILE)
    for kind in ("encoder", "classifier"):
        with pytest.raises(ValueError, match=f"^{FILE} has {kind} format 0, this version reads 1$"):
            header({"format": 0}, kind)


def test_an_endless_header_is_damaged() -> None:
    with pytest.raises(ValueError, match=f"^{FILE} has a damaged header$"):
        header("[" * 100_000)


def test_tensors_of_impossible_types_and_shapes_are_refused(tmp_path: Path) -> None:
    for kind, shape, size in (("F6_E2M3", [4], 3), ("F32", [2**63, 0], 0)):
        text = json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
        (tmp_path / "model").write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
        with pytest.raises(ValueError, match=r"model is not a readable safetensors file$"):
            read_tensors(tmp_path / "model")


def test_normalisation_is_of_every_channel_and_finite() -> None:
    assert normalisation_of({"mean": [0.5], "std": [1]}, 1) == ((0.5,), (1.0,))
    for mean in ([0.5, 0.5], [float("nan")], [10**400], "grey", None):
        with pytest.raises(WRONG_VALUES):
            normalisation_of({"mean": mean, "std": [1]}, 1)


def test_a_module_is_filled_and_draws_no_more_random_numbers_than_once() -> None:
    kept = nn.Linear(3, 2).state_dict()
    torch.manual_seed(0)
    made = filled(lambda: nn.Linear(3, 2), lambda module: module.load_state_dict(kept))
    after = torch.rand(1)
    assert all(torch.equal(value, kept[name]) for name, value in made.state_dict().items())
    torch.manual_seed(0)
    nn.Linear(3, 2)
    assert torch.equal(torch.rand(1), after)


def test_what_a_file_does_not_hold_takes_no_memory(tmp_path: Path) -> None:
    kept = nn.Linear(3, 2).state_dict()
    with pytest.raises(ValueError, match=r"model does not hold the network that its header describes$"):
        described(
            lambda: nn.Linear(1 << 24, 1 << 24),
            lambda module: module.load_state_dict(kept),
            tmp_path / "model",
            "the network",
        )


def test_lists_become_tuples_and_what_is_wrong_raises() -> None:
    assert config_of(Sizes, {"width": 4, "range": [0.5, 1], "name": "x"}) == Sizes(width=4, range=(0.5, 1), name="x")
    assert config_of(Sizes, {}) == Sizes()
    with pytest.raises(TypeError):
        config_of(Sizes, {"height": 4})
