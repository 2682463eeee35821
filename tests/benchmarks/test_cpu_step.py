"""The plain steps compute what ours compute, and the products of a step are all found."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from benchmarks.cpu_step import RATE, build, our_step, row
from benchmarks.plain.steps import PlainStep, plain
from benchmarks.products import RecordProducts, products_alone
from torch.utils.flop_counter import FlopCounterMode

from unmask.methods.simmim import SimMIM, SimMIMConfig
from unmask.models.products import matrix_product


@pytest.mark.parametrize("name", ["mae", "cmae", "conmim"])
def test_both_sides_take_the_same_steps(name: str) -> None:
    method, batch, views = build(name, "vit_tiny_patch16_224", 8, side=64)
    theirs = PlainStep(method, lr=RATE)
    ours = our_step(method, batch, views, compiled=False)
    losses = [(theirs.step(views), ours()) for _ in range(3)]
    assert all(math.isclose(one, other, rel_tol=1e-5) for one, other in losses)
    assert losses[0][0] > losses[-1][0]


@pytest.mark.parametrize("name", ["mae", "cmae", "conmim"])
def test_the_plain_way_predicts_and_compares_everywhere(name: str) -> None:
    """That is what ours saves: the peer must not be given our savings."""
    method, _, views = build(name, "vit_tiny_patch16_224", 8, side=64)
    with FlopCounterMode(display=False) as ours:
        method.losses(views)
    with FlopCounterMode(display=False) as theirs:
        plain(method)(views)
    assert ours.get_total_flops() < theirs.get_total_flops()


def test_a_method_without_a_plain_step_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no plain step of SimMIM"):
        plain(SimMIM(SimMIMConfig()))


def test_products_are_counted_with_their_layout_and_run_again() -> None:
    one, other = torch.randn(3, 5), torch.randn(7, 5)
    calls = RecordProducts()
    with calls:
        torch.mm(one, other.t())
        torch.bmm(one[None], other.t()[None])
        matrix_product(one, other.t())
    by_torch, by_numpy = ((3, 5), (5, 7), False, True, False), ((3, 5), (5, 7), False, True, True)
    assert calls.products == {by_torch: 1, ((1, 3, 5), (1, 5, 7), False, True, False): 1, by_numpy: 1}
    for product, kind in ((torch.mm, by_torch), (matrix_product, by_numpy)):
        run = products_alone(partial(product, one, other.t()))
        again = RecordProducts()
        with again:
            run()
        assert again.products == {kind: 1}


def test_the_row_is_made_of_the_rounds_own_ratios() -> None:
    result = {
        "method": "mae",
        "encoder": "vit_small_patch16_224",
        "threads": 1,
        "batch_size": 8,
        "cpu": {"authors": [2.0, 4.0, 3.0], "ours": [1.0, 2.0, 2.0], "products": [0.9, 1.8, 1.8]},
        "wall": {"authors": [4.0, 4.0, 4.0], "ours": [2.0, 4.0, 4.0], "products": [1.0, 1.0, 1.0]},
        "losses": {"authors": [1.0], "ours": [1.0]},
    }
    assert row(result) == ("mae", "vit_small", 1, 8, 2.0, 2.0, 2.0, None, 1.0, 90.0, "0.0e+00")
