"""Whatever keeps a golden case from being replayed is a verdict with a reason, never an exception."""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.interop.authors.case import Json, Tensors
from unmask.interop.golden import Verdict, find_cases, verify

Read = Callable[[str], tuple[Json, Tensors]]
Write = Callable[[Json, Tensors], Path]


def _refuses(verdict: Verdict, reason: str, method: str = "mae") -> None:
    assert not verdict.agrees
    assert verdict.reason.startswith(reason), verdict.reason
    assert verdict.method == method
    assert verdict.loss_error is None


@pytest.mark.parametrize("name", ["images", "masks", "losses", "grad_norms", "init.norm.bias"])
def test_a_missing_tensor_is_a_reason(read_case: Read, write_case: Write, name: str) -> None:
    case, tensors = read_case("mae")
    del tensors[name]
    ours = "encoder.vit.norm.bias" if name.startswith("init") else name
    verdict = verify(write_case(case, tensors))
    _refuses(verdict, "cannot be replayed: ")
    assert ours in verdict.reason


def test_an_initial_value_without_a_place_is_a_reason(read_case: Read, write_case: Write) -> None:
    case, tensors = read_case("mae")
    _refuses(verify(write_case(case, tensors | {"init.extra": torch.zeros(2)})), "cannot be replayed: ")
    tensors["init.norm.bias"] = torch.zeros(7)
    _refuses(verify(write_case(case, tensors)), "cannot be replayed: RuntimeError: ")


@pytest.mark.parametrize("method", ["mocov9", "", None, 3, ["mae"]])
def test_an_unknown_method_is_a_reason(read_case: Read, write_case: Write, method: Any) -> None:
    case, tensors = read_case("mae")
    _refuses(verify(write_case(case | {"method": method}, tensors)), "unknown method", str(method))


def test_a_damaged_file_is_a_reason(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "mae.json"
    shutil.copy(golden / "mae.json", path)
    _refuses(verify(path), "unreadable: ", "?")
    whole = (golden / "mae.safetensors").read_bytes()
    for content in (b"", b"\xff" * 20, whole[:-100], whole[: len(whole) // 2]):
        path.with_suffix(".safetensors").write_bytes(content)
        _refuses(verify(path), "unreadable: ", "?")
    path.with_suffix(".safetensors").write_bytes(whole)
    assert verify(path).agrees
    # Packed it agrees as well, and a damaged pack is a reason too.
    path.with_suffix(".safetensors").unlink()
    packed = lzma.compress(whole, preset=0)
    for content in (b"", b"nothing", packed[:-100]):
        path.with_suffix(".safetensors.xz").write_bytes(content)
        _refuses(verify(path), "unreadable: ", "?")
    path.with_suffix(".safetensors.xz").write_bytes(packed)
    assert verify(path).agrees
    for text in ("", "{", "[]", "[1, 2]", "3", "null", '"mae"', "{}", "\udcff", "[" * 100_000):
        path.write_bytes(text.encode("utf8", "surrogateescape"))
        _refuses(verify(path), "unreadable: ", "?")


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": -1},
        {"steps": 5},
        {"steps": "four"},
        {"steps": None},
        {"lr": None},
        {"lr": "high"},
        {"lr": []},
        {"betas": 0.9},
        {"betas": [2, 3]},
        {"betas": ["a", "b"]},
        {"heads": 0},
        {"heads": 5},
        {"heads": "3"},
        {"depth": -1},
        {"depth": 0},
        {"depth": 1.5},
        {"patch": 0},
        {"patch": 7},
        {"patch": None},
        {"embed_dim": 10**18},
        {"embed_dim": "wide"},
        {"image": [64]},
        {"image": "64"},
        {"image": 32},
        {"decoder_heads": 0},
        {"mask_ratio": 7},
        {"mean": [1]},
        {"mean": "grey"},
        {"weight_decay": -1},
        {"weight_decay": None},
        {"clip": "tight"},
        {"final_norms": None},
        {"final_norms": {}},
        {"final_norms": []},
        {"final_norms": {"norm.bias": "large"}},
        {"final_norms": {"no.such.parameter": 1.0}},
        {"first_step_grad_norms": []},
        {"first_step_grad_norms": {"no.such.parameter": 1.0}},
    ],
    ids=str,
)
def test_absurd_json_is_a_reason(read_case: Read, write_case: Write, changes: dict[str, Any]) -> None:
    case, tensors = read_case("mae")
    _refuses(verify(write_case(case | changes, tensors)), "cannot be replayed: ")


def test_cases_are_found_in_pairs_and_in_order(golden: Path, tmp_path: Path) -> None:
    assert [path.stem for path in find_cases(golden)] == sorted(path.stem for path in golden.glob("*.json"))
    with pytest.raises(ValueError, match=r"^there is no folder .*nowhere$"):
        find_cases(tmp_path / "nowhere")
    (tmp_path / "alone.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no golden cases \(pairs of NAME\.json and NAME\.safetensors\)$"):
        find_cases(tmp_path)
