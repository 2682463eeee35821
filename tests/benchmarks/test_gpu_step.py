"""The benchmark of steps on a GPU, on the CPU: counts of work, and that it runs from end to end."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.gpu_step import PLAIN, TINY, ceiling, flops_of, model_work, shapes_of
from benchmarks.products import RecordProducts

from benchmarks import gpu_step


def test_products_are_counted_by_their_shapes() -> None:
    first, second = torch.zeros(3, 4, requires_grad=True), torch.zeros(4, 5)
    with RecordProducts() as record:
        (first @ second).sum().backward()
        torch.bmm(torch.zeros(2, 3, 4), torch.zeros(2, 4, 5))
        torch.nn.functional.linear(torch.zeros(6, 4), torch.zeros(5, 4), torch.zeros(5))
    assert shapes_of(record.products) == {(1, 3, 4, 5): 1, (1, 3, 5, 4): 1, (2, 3, 4, 5): 1, (1, 6, 4, 5): 1}
    assert flops_of((2, 3, 4, 5)) == 2 * 2 * 3 * 4 * 5


def test_the_ceiling_lies_above_what_all_products_reach() -> None:
    shapes = Counter({(1, 64, 64, 64): 3, (4, 8, 8, 8): 5})
    found = ceiling(shapes, torch.device("cpu"), torch.float32, seconds=0.001)
    assert 0 < found.all_products <= found.best * (1 + 1e-9)


def test_work_is_that_of_a_step_and_grows_with_the_batch() -> None:
    setting = replace(TINY, method="mae")
    flops, shapes = model_work(setting, torch.device("cpu"))
    double, _ = model_work(replace(setting, batch=2 * setting.batch), torch.device("cpu"))
    # What is the same for all images (mask tokens, positions) is computed once.
    assert double == pytest.approx(2 * flops, rel=0.02)
    # All of it but attention's own products, which are one kernel.
    assert 0.8 * flops < sum(flops_of(shape) * count for shape, count in shapes.items()) <= flops


def test_the_whole_benchmark_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu_step.json"
    arguments = ["--device", "cpu", "--tiny", "--variants", "eager", "--rounds", "1", "--steps", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu_step", *arguments])
    gpu_step.main()
    (table,) = json.loads(out.read_text())["tables"]
    entries = [(row[0], row[1]) for row in table["rows"]]
    assert entries == [(name, entry) for name in ("conmim", "cmae", "mae") for entry in (PLAIN, "ours, eager")]
    # No peak is known on the CPU.
    assert [row[-1] for row in table["rows"]] == [None] * 6
