"""The benchmark of scaling: what it counts, and that its figure and tables are there."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.scaling import BASE, KeptBytes, exponent, infonce_curves, our_infonce, plain_infonce, step_cost

from benchmarks import scaling

TINY = replace(BASE, image_size=64, batch=2, depth=1, small_parts=True)


def test_what_a_product_keeps_is_counted_once_and_weights_are_not() -> None:
    weight, features = torch.zeros(8, 4, requires_grad=True), torch.zeros(16, 8)
    kept = KeptBytes([weight])
    with kept:
        held = features @ weight + (features * 2) @ weight
    assert held.requires_grad
    # The features and their double; each in float32.
    assert kept.total == 2 * 16 * 8 * 4


def test_exponents() -> None:
    sizes = [2.0, 4.0, 8.0]
    assert exponent(sizes, [3 * size for size in sizes]) == pytest.approx(1)
    assert exponent(sizes, [size**2 for size in sizes]) == pytest.approx(2)


@pytest.mark.parametrize("method", ["mae", "cmae", "conmim"])
def test_memory_of_a_step_is_proportional_to_the_batch_and_the_tokens(method: str) -> None:
    setting = replace(TINY, method=method)
    sizes = [replace(setting, batch=batch) for batch in (2, 4, 8)]
    assert exponent([2, 4, 8], [step_cost(size, 1).kept for size in sizes]) < 1.05
    sides = [replace(setting, image_size=side) for side in (64, 128)]
    assert exponent([side.tokens for side in sides], [step_cost(side, 1).kept for side in sides]) < 1.1


def test_both_forms_of_infonce_are_the_same_loss() -> None:
    online, target = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    torch.testing.assert_close(plain_infonce(online, target), our_infonce(online, target))


def test_the_table_of_logits_grows_with_the_square_and_ours_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.objectives.chunks.MOST_LOGITS", 2**14)
    curves = infonce_curves([256, 512, 1024], 16, rounds=1)
    slopes = {name: exponent([x for x, _ in points], [c.kept for _, c in points]) for name, points in curves.items()}
    assert slopes["whole table"] > 1.8
    assert slopes["ours"] < 1.1


def test_the_whole_benchmark_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = "--methods mae conmim --batches 1 2 --sides 64 128 --encoders vit_tiny_patch16_224 vit_small_patch16_224"
    others = "--logits-sides 64 --logits-encoder vit_tiny_patch16_224 --infonce 16 32 --worlds 1 --rank-batch 16"
    out = tmp_path / "scaling.json"
    # Processes of ranks are left out here: one rank is this process.
    monkeypatch.setattr(scaling, "rank_curve", lambda *_: [(1.0, scaling.Cost(1.0, 1)), (2.0, scaling.Cost(2.0, 2))])
    arguments = ["scaling", "--tiny", "--rounds", "1", *sizes.split(), *others.split(), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    scaling.main()
    result = json.loads(out.read_text())
    assert len(result["tables"]) == 6
    assert set(result["raw"]["steps"]) == {"batch", "tokens", "width"}
    assert out.with_suffix(".svg").read_text().count("<svg") == 1
