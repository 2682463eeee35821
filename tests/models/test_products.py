"""Linear layers by NumPy: torch's results and gradients, counted like torch's, and used where they are quicker."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unmask.bench.made import made_batch
from unmask.methods import METHODS
from unmask.models import products
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.products import gains_by_products, matrix_product, numpy_is_quicker, quick_products
from unmask.training.trainer import Trainer, TrainingConfig


class _Calls:
    """Counts NumPy's products."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        whole = np.matmul

        def counted(*given: object, **named: object) -> object:
            self.count += 1
            return whole(*given, **named)  # type: ignore[call-overload]

        monkeypatch.setattr(products.np, "matmul", counted)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> _Calls:
    return _Calls(monkeypatch)


def _results(layer: nn.Module, tokens: Tensor) -> list[Tensor]:
    """Output, gradient of the input and gradients of all parameters."""
    layer = copy.deepcopy(layer)
    tokens = tokens.detach().requires_grad_()
    output = layer(tokens)
    output.square().sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    assert all(gradient is not None for gradient in [tokens.grad, *gradients])
    return [output.detach(), tokens.grad, *gradients]  # type: ignore[list-item]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 256), (3, 50, 256), (2, 2, 40, 256)])
def test_a_layer_and_its_gradients_are_torchs(
    shape: tuple[int, ...], bias: bool, threads: int, calls: _Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    layer, tokens = nn.Linear(256, 384, bias=bias), torch.randn(*shape)
    expected = _results(layer, tokens)
    assert calls.count == 0
    with quick_products():
        actual = _results(layer, tokens)
    assert calls.count >= 3
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@given(m=st.integers(1, 70), k=st.integers(1, 40), n=st.integers(1, 70), turned=st.tuples(st.booleans(), st.booleans()))
@settings(max_examples=40, deadline=None)
def test_products_of_any_shape_and_layout(m: int, k: int, n: int, turned: tuple[bool, bool]) -> None:
    generator = torch.Generator().manual_seed(m * k + n)
    left = torch.randn(k, m, generator=generator).t() if turned[0] else torch.randn(m, k, generator=generator)
    right = torch.randn(n, k, generator=generator).t() if turned[1] else torch.randn(k, n, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_SHARED", 500)
        patch.setattr(torch, "get_num_threads", lambda: 3)
        torch.testing.assert_close(matrix_product(left, right), left @ right, rtol=1e-4, atol=1e-5)


def test_factors_that_the_library_cannot_read_are_copied() -> None:
    spread, strided = torch.randn(1, 30).expand(20, 30), torch.randn(30, 24)[:, ::2]
    torch.testing.assert_close(matrix_product(spread, strided), spread @ strided)


def test_what_does_not_suit_stays_with_torch(calls: _Calls) -> None:
    wide, narrow = nn.Linear(512, 512), nn.Linear(16, 16)
    with quick_products():
        narrow(torch.randn(8, 16))
        wide.double()(torch.randn(64, 512, dtype=torch.float64))
        with torch.autocast("cpu", torch.bfloat16):
            wide.float()(torch.randn(64, 512))
        wide.to("meta")(torch.randn(64, 512, device="meta"))
        assert calls.count == 0
    nn.Linear(512, 512)(torch.randn(64, 512))
    assert calls.count == 0


def test_what_needs_no_gradient_costs_none(calls: _Calls) -> None:
    layer, tokens = nn.Linear(512, 512), torch.randn(64, 512)
    with quick_products():
        output = layer(tokens)
        assert calls.count == 1
        output.sum().backward()  # of the weights alone
        assert calls.count == 2
        with torch.no_grad():
            assert not layer(tokens).requires_grad


@pytest.mark.parametrize("shape", [(64, 512), (2, 32, 512)])
def test_the_output_may_be_changed_in_place(shape: tuple[int, ...], calls: _Calls) -> None:
    torch.manual_seed(0)
    layer, tokens = nn.Sequential(nn.Linear(512, 512), nn.ReLU(inplace=True), nn.Linear(512, 256)), torch.randn(*shape)
    expected = _results(layer, tokens)
    with quick_products():
        actual = _results(layer, tokens)
    assert calls.count == 6
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_operations_are_counted_like_torchs() -> None:
    layer, tokens = nn.Linear(512, 256), torch.randn(64, 512, requires_grad=True)
    counts = []
    for context in (torch.enable_grad, quick_products):
        with context(), FlopCounterMode(display=False) as counter:
            layer(tokens).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts == [3 * 2 * 64 * 512 * 256] * 2


@pytest.fixture
def processor_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Pretends a processor of another maker."""

    def pretend(vendor: str) -> None:
        monkeypatch.setattr(products, "_processor", lambda: f"vendor_id : {vendor}")
        products._on_suitable_machine.cache_clear()

    yield pretend
    products._on_suitable_machine.cache_clear()


def test_the_maker_of_the_processor_decides(
    processor_of: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    library = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    for vendor, quicker in {
        "AuthenticAMD": torch.backends.mkl.is_available(),
        "GenuineIntel": False,
        "": False,
    }.items():
        processor_of(vendor)
        assert numpy_is_quicker() is (quicker and "openblas" in library)


@pytest.mark.parametrize(("policy", "threads", "quicker"), [("", 1, True), ("", 2, False), ("PASSIVE", 2, True)])
def test_threads_that_spin_are_not_competed_with(
    policy: str, threads: int, quicker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_on_suitable_machine", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    assert numpy_is_quicker() is quicker


def test_only_wide_layers_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "numpy_is_quicker", lambda: True)
    assert gains_by_products(nn.Sequential(nn.Linear(8, 8), nn.Linear(256, 256)))
    assert not gains_by_products(nn.Sequential(nn.Linear(8, 8), nn.Conv2d(3, 512, 16)))


def test_checkpointed_networks_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "numpy_is_quicker", lambda: True)
    for checkpointing in (False, True):
        config = EncoderConfig(name="vit_tiny_patch16_224", width=256, depth=1, heads=4, checkpointing=checkpointing)
        assert gains_by_products(build_encoder(config, mask_token=False)) is not checkpointing


@pytest.mark.parametrize("name", ["mae", "cmae", "conmim"])
def test_a_training_step_takes_them_and_learns_the_same(
    name: str, calls: _Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = METHODS[name].Config().for_images(32, 32)
    encoder = dataclasses.replace(settings.encoder, patch_size=8, width=256, depth=2, heads=4)
    losses = {}
    for quicker in (False, True):
        monkeypatch.setattr(products, "numpy_is_quicker", lambda quicker=quicker: quicker)
        torch.manual_seed(0)
        method = METHODS[name](dataclasses.replace(settings, encoder=encoder))
        training = TrainingConfig(batch_size=8, workers=0, device="cpu")
        trainer = Trainer(method, training, steps_per_epoch=1000, device=torch.device("cpu"))
        batch = dataclasses.replace(made_batch(method, 8), seed=1)
        losses[quicker] = [trainer.train_step([batch]).loss for _ in range(3)]
        assert (calls.count > 0) is quicker
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert losses[True][2] != losses[True][0]
