"""Operations are counted as the textbook counts them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tiny_runs import tiny_settings
from unmask.bench.made import made_batch
from unmask.bench.work import Work, count_work, matrix_rate
from unmask.masking import masked_count
from unmask.methods import METHODS
from unmask.methods.base import Method, MethodConfig


def simmim(depth: int, width: int) -> Method:
    settings = tiny_settings("simmim")
    encoder = replace(settings.encoder, width=width, depth=depth, heads=4)
    return METHODS["simmim"](replace(settings, encoder=encoder))


def test_a_step_costs_what_the_formula_says() -> None:
    depth, width, batch = 3, 64, 4
    method = simmim(depth, width)
    work = count_work(method, made_batch(method, batch))
    N = 16
    L = N + 1
    pixels = 8 * 8 * 3
    # A product of M x K by K x N is 2 M K N operations; so are each of the two on its way back.
    blocks = depth * 2 * L * (12 * width**2 + 2 * L * width)
    hidden = masked_count(method.config.mask, (4, 4)) or N  # type: ignore[attr-defined]
    # Hidden patches are mask tokens: nobody embeds their pixels.
    patches = 2 * (N - hidden) * pixels * width
    decoder = 2 * hidden * width * pixels
    # Nothing asks for the gradient of the images themselves.
    expected = 3 * (blocks + decoder) + 2 * patches
    assert work.flops == pytest.approx(expected, rel=0.01)
    assert (float(L), width, 4 * width) in work.products


def test_counting_leaves_the_method_as_it_was() -> None:
    method = simmim(1, 32)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    count_work(method, made_batch(method, 2))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())


def test_twice_the_images_cost_an_image_the_same() -> None:
    method = simmim(2, 32)
    few, many = (count_work(method, made_batch(method, count)) for count in (2, 8))
    assert few == many


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rate_is_measured_where_there_are_products(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.bench.work.SECONDS", 0.01)
    rate = matrix_rate(Work(1.0, ((17.0, 32, 128),)), 4, dtype=dtype, device=torch.device("cpu"))
    assert rate is not None
    assert rate > 0
    assert matrix_rate(Work(1.0, ()), 4, dtype=dtype, device=torch.device("cpu")) is None


@pytest.mark.parametrize("method", METHODS)
def test_made_images_do_for_every_method(method: str) -> None:
    settings: MethodConfig = tiny_settings(method)
    built = METHODS[method](settings)
    assert count_work(built, made_batch(built, 4)).flops > 0
