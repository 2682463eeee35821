"""Losses over large tables of logits: the same values and gradients, and memory that grows with the batch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.objectives import chunks
from unmask.objectives.chunks import by_rows
from unmask.objectives.contrastive import batch_infonce, ntxent, patch_infonce, queue_infonce

TEMPERATURE = 0.2


def _features(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _plain_batch_infonce(online_BD: Tensor, target_BD: Tensor) -> Tensor:
    logits_BB = F.normalize(online_BD, dim=-1) @ F.normalize(target_BD.detach(), dim=-1).T / TEMPERATURE
    return F.cross_entropy(logits_BB, torch.arange(len(online_BD)))


def _plain_ntxent(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    features_QD = F.normalize(torch.cat([first_BD, second_BD]), dim=-1)
    logits_QQ = features_QD @ features_QD.T / TEMPERATURE
    logits_QQ = logits_QQ.masked_fill(torch.eye(len(features_QD), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits_QQ, torch.arange(len(features_QD)).roll(len(first_BD)))


def _plain_queue_infonce(online_BD: Tensor, keys_BD: Tensor) -> Tensor:
    online_BD, keys_BD = F.normalize(online_BD, dim=-1), F.normalize(keys_BD.detach(), dim=-1)
    positive_B1 = (online_BD * keys_BD).sum(dim=-1, keepdim=True)
    logits = torch.cat([positive_B1, online_BD @ _queue(online_BD)], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(online_BD), dtype=torch.int64))


def _queue(features_BD: Tensor) -> Tensor:
    return F.normalize(_features(features_BD.shape[1], 50, seed=7), dim=0).to(features_BD.dtype)


def _batch(online_BD: Tensor, target_BD: Tensor) -> Tensor:
    return batch_infonce(online_BD, target_BD, TEMPERATURE)


def _two_views(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    return ntxent(first_BD, second_BD, TEMPERATURE)


def _with_queue(online_BD: Tensor, keys_BD: Tensor) -> Tensor:
    return queue_infonce(online_BD, keys_BD[None], _queue(online_BD), TEMPERATURE).sum()


Loss = Callable[[Tensor, Tensor], Tensor]
PAIRS: dict[str, tuple[Loss, Loss]] = {
    "batch": (_batch, _plain_batch_infonce),
    "two views": (_two_views, _plain_ntxent),
    "queue": (_with_queue, _plain_queue_infonce),
}


@contextmanager
def _at_most(logits: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MOST_LOGITS", logits)
        yield


def _saved_bytes(loss: Callable[[], Tensor]) -> int:
    """Bytes of all memory that is kept for the backward pass, inputs included, each counted once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # Held until counted: freed memory would be handed out, and counted under the same address, again.
        held = loss()
    assert held.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 9), width=st.integers(1, 5), most=st.integers(1, 400), seed=st.integers(0, 1000))
def test_parts_change_neither_values_nor_gradients(name: str, batch: int, width: int, most: int, seed: int) -> None:
    ours, plain = PAIRS[name]
    features = [_features(batch, width, seed=seed + k).requires_grad_() for k in range(2)]
    expected = plain(*features)
    expected_gradients = torch.autograd.grad(expected, features, allow_unused=True)
    with _at_most(most):
        found = ours(*features)
        gradients = torch.autograd.grad(found, features, allow_unused=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient is None) == (wanted is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_of_parts_are_those_of_finite_differences(name: str) -> None:
    ours, _ = PAIRS[name]
    first, second = _features(5, 3, seed=0).requires_grad_(), _features(5, 3, seed=1)
    with _at_most(12):
        assert torch.autograd.gradcheck(lambda online: ours(online, second), (first,))


@pytest.mark.parametrize("name", PAIRS)
def test_memory_grows_with_the_batch_and_not_with_its_square(name: str) -> None:
    ours, plain = PAIRS[name]

    def kept(loss: Loss, batch: int) -> int:
        first, second = _features(batch, 8, seed=0).requires_grad_(), _features(batch, 8, seed=1)
        return _saved_bytes(lambda: loss(first, second))

    with _at_most(1024):
        parts = [kept(ours, batch) for batch in (128, 256, 512)]
    assert parts[1] <= 2.05 * parts[0]
    assert parts[2] <= 2.05 * parts[1]
    if name != "queue":
        whole = [kept(plain, batch) for batch in (128, 256, 512)]
        assert whole[2] > 3.5 * whole[1]
        assert parts[2] < whole[2] / 8


def test_a_part_holds_no_more_logits_than_it_may() -> None:
    seen = []

    def terms(rows_BD: Tensor) -> Tensor:
        seen.append(len(rows_BD))
        return rows_BD.sum(dim=1)

    rows = _features(10, 3, seed=0)
    with _at_most(20):
        assert torch.equal(by_rows(terms, rows, width=5), rows.sum(dim=1))
        assert seen == [4, 4, 2]
        seen.clear()
        # A row cannot be cut.
        by_rows(terms, rows, width=50)
        assert seen == [1] * 10
        seen.clear()
        by_rows(terms, rows, width=2)
        assert seen == [10]


def test_half_precision_is_the_same_in_parts() -> None:
    first, second = (_features(24, 8, seed=k).float() for k in range(2))
    values = []
    for most in (10**6, 100):
        online = first.clone().requires_grad_()
        with _at_most(most), torch.autocast("cpu", torch.bfloat16):
            loss = batch_infonce(online, second, TEMPERATURE)
        loss.backward()
        assert loss.dtype == torch.float32
        assert online.grad is not None
        values.append((loss.detach(), online.grad))
    torch.testing.assert_close(values[0], values[1])


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 6), patches=st.integers(1, 8), most=st.integers(1, 300), seed=st.integers(0, 1000))
def test_images_in_parts_change_neither_values_nor_gradients(batch: int, patches: int, most: int, seed: int) -> None:
    features = [_features(batch, patches, 4, seed=seed + k).requires_grad_() for k in range(2)]
    # Any number of hidden patches an image, none in some; one in the first.
    mask_BN = _features(batch, patches, seed=seed + 2) > 0
    mask_BN[0, 0] = True
    found = []
    for limit in (10**6, most):
        with _at_most(limit):
            loss = patch_infonce(*features, mask_BN, TEMPERATURE)
            found.append((loss, *torch.autograd.grad(loss, features)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_memory_of_patches_grows_with_the_images_and_not_with_the_square_of_the_patches() -> None:
    def kept(batch: int, patches: int, most: int) -> int:
        online, target = (_features(batch, patches, 8, seed=k) for k in range(2))
        mask_BN = torch.arange(patches).expand(batch, -1) % 4 > 0
        online.requires_grad_()
        with _at_most(most):
            return _saved_bytes(lambda: patch_infonce(online, target, mask_BN, TEMPERATURE))

    few, many = kept(4, 64, 64 * 64), kept(4, 256, 64 * 64)
    assert many <= 4.1 * few
    assert kept(4, 256, 10**9) > 5 * many
