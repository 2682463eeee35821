"""Clustering objectives against plain NumPy loops, and over two ranks against one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from forked_ranks import as_ranks
from unmask.objectives.clustering import (
    assignment_entropy,
    centred_softmax,
    cross_view_entropy,
    hidden_patch_entropy,
    idle_prototypes,
    log_assignment,
    mean_entropy,
    next_centre,
    sinkhorn,
)

Array = NDArray[np.float64]


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _cross_entropy(target_K: Array, probability_K: Array) -> float:
    return float(-sum(t * math.log(p) for t, p in zip(target_K, probability_K, strict=True)))


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 4), prototypes=st.integers(2, 6), temperature=st.floats(0.03, 2), seed=st.integers(0, 99))
def test_targets_are_centred_before_they_are_sharpened(
    batch: int, prototypes: int, temperature: float, seed: int
) -> None:
    logits, centre = _normal(batch, prototypes, seed=seed), _normal(prototypes, seed=seed + 1)
    expected = _softmax((logits.numpy() - centre.numpy()) / temperature)
    np.testing.assert_allclose(centred_softmax(logits, centre, temperature).numpy(), expected, rtol=1e-9, atol=1e-15)


def test_the_centre_moves_towards_the_mean() -> None:
    centre, mean = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 3.0])
    torch.testing.assert_close(next_centre(centre, mean, 0.9), torch.tensor([1.2, -1.5]))
    assert torch.equal(next_centre(centre, mean, 1.0), centre)
    assert torch.equal(next_centre(centre, mean, 0.0), mean)
    # Half precision features do not make the centre one of half precision.
    assert next_centre(centre, mean.bfloat16(), 0.9).dtype == torch.float32


@settings(max_examples=20, deadline=None)
@given(
    views=st.integers(2, 5),
    targets=st.integers(1, 2),
    batch=st.integers(1, 3),
    temperature=st.floats(0.1, 2),
    seed=st.integers(0, 99),
)
def test_every_target_view_meets_every_other_online_view(
    views: int, targets: int, batch: int, temperature: float, seed: int
) -> None:
    online = _normal(views, batch, 5, seed=seed)
    target = _normal(targets, batch, 5, seed=seed + 1).softmax(dim=-1)
    terms = [
        _cross_entropy(target[q, b].numpy(), _softmax(online[v, b].numpy() / temperature))
        for q in range(targets)
        for v in range(views)
        for b in range(batch)
        if q != v
    ]
    found = cross_view_entropy(online, target, temperature)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-10)


def test_a_view_is_never_compared_with_itself() -> None:
    online = _normal(3, 2, 4, seed=0).requires_grad_()
    target = torch.zeros(2, 2, 4, dtype=torch.float64)
    target[0] = _normal(2, 4, seed=1).softmax(dim=-1)  # only the first target view says anything
    cross_view_entropy(online, target, 0.1).backward()
    assert online.grad is not None
    assert not online.grad[0].any()
    assert online.grad[1:].any(dim=-1).all()


def test_one_view_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^cross-entropy between views needs at least two online views, got 1$"):
        cross_view_entropy(torch.zeros(1, 2, 3), torch.ones(1, 2, 3) / 3, 0.1)


def test_chance_is_the_log_of_the_number_of_prototypes() -> None:
    uniform = torch.full((2, 3, 8), 1 / 8, dtype=torch.float64)
    assert cross_view_entropy(torch.ones(4, 3, 8).double(), uniform, 0.1).item() == pytest.approx(math.log(8))
    log = log_assignment(torch.ones(4, 3, 8).double(), 0.1)
    assert assignment_entropy(log, uniform[0]).item() == pytest.approx(math.log(8))
    assert mean_entropy(log).item() == pytest.approx(math.log(8))
    assert idle_prototypes(log.exp()).item() == pytest.approx(0, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(images=st.integers(1, 4), patches=st.integers(1, 6), temperature=st.floats(0.1, 2), seed=st.integers(0, 99))
def test_patches_are_averaged_by_image_and_empty_images_count(
    images: int, patches: int, temperature: float, seed: int
) -> None:
    mask_BN = torch.rand(images, patches, generator=torch.Generator().manual_seed(seed)) < 0.5
    image_M, _ = mask_BN.nonzero(as_tuple=True)
    online, target = _normal(len(image_M), 5, seed=seed), _normal(len(image_M), 5, seed=seed + 1).softmax(dim=-1)
    total = 0.0
    for image in range(images):
        own = [m for m in range(len(image_M)) if image_M[m] == image]
        for m in own:
            entropy = _cross_entropy(target[m].numpy(), _softmax(online[m].numpy() / temperature))
            total += entropy / max(1, len(own))
    found = hidden_patch_entropy(online, target, image_M, images, temperature)
    assert found.item() == pytest.approx(total / images, rel=1e-10, abs=1e-12)


def _slow_sinkhorn(probabilities_BK: Array, iterations: int) -> Array:
    B, K = probabilities_BK.shape
    plan_KB = probabilities_BK.T / probabilities_BK.sum()
    for _ in range(iterations):
        for k in range(K):
            plan_KB[k] = plan_KB[k] / plan_KB[k].sum() / K
        for b in range(B):
            plan_KB[:, b] = plan_KB[:, b] / plan_KB[:, b].sum() / B
    return np.asarray(plan_KB.T * B)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 5), prototypes=st.integers(2, 6), iterations=st.integers(1, 4), seed=st.integers(0, 99))
def test_sinkhorn_is_the_loop_over_rows_and_columns(batch: int, prototypes: int, iterations: int, seed: int) -> None:
    probabilities = _normal(batch, prototypes, seed=seed).softmax(dim=-1)
    found = sinkhorn(probabilities, iterations)
    np.testing.assert_allclose(found.numpy(), _slow_sinkhorn(probabilities.numpy(), iterations), rtol=1e-10)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(batch, dtype=torch.float64))


def test_many_rounds_of_sinkhorn_use_all_prototypes_alike() -> None:
    probabilities = (3 * _normal(12, 4, seed=0)).softmax(dim=-1)
    balanced = sinkhorn(probabilities, 200)
    torch.testing.assert_close(balanced.sum(dim=0), torch.full((4,), 3.0, dtype=torch.float64))
    # Whoever preferred a prototype more than another still does.
    assert torch.equal(balanced[:, 0].argsort(), (balanced[:, 0] / balanced.sum(dim=1)).argsort())
    assert not sinkhorn(probabilities.requires_grad_(), 3).requires_grad


def test_entropies_are_their_formulas() -> None:
    logits = _normal(3, 4, 6, seed=0)
    probabilities = _softmax(logits.numpy() / 0.5)
    log = log_assignment(logits, 0.5)
    mean_K = probabilities.reshape(-1, 6).mean(axis=0)
    assert idle_prototypes(log.exp()).item() == pytest.approx(math.log(6) - _cross_entropy(mean_K, mean_K), rel=1e-10)
    single = [_cross_entropy(row, row) for row in probabilities.reshape(-1, 6)]
    assert mean_entropy(log).item() == pytest.approx(sum(single) / len(single), rel=1e-10)
    target = _softmax(_normal(4, 6, seed=1).numpy())
    terms = [_cross_entropy(target[b], probabilities[v, b]) for v in range(3) for b in range(4)]
    found = assignment_entropy(log, torch.from_numpy(target))
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-10)


def test_one_prototype_for_all_is_as_idle_as_can_be() -> None:
    probabilities = torch.zeros(5, 8)
    probabilities[:, 3] = 1
    assert idle_prototypes(probabilities).item() == pytest.approx(math.log(8))


def test_half_precision_logits_give_losses_in_full() -> None:
    online, target = _normal(3, 2, 4, seed=0).bfloat16(), torch.full((2, 2, 4), 0.25)
    assert cross_view_entropy(online, target, 0.1).dtype == torch.float32
    assert log_assignment(online, 0.1).dtype == torch.float32
    assert log_assignment(online.double(), 0.1).dtype == torch.float64


def _everything(online_BK: Tensor, target_BK: Tensor) -> dict[str, Tensor]:
    """All that depends on other samples, and the gradient of the one term with a gradient."""
    logits = online_BK.clone().requires_grad_()
    idle_prototypes(log_assignment(logits, 0.5).exp()).backward()
    assert logits.grad is not None
    return {
        "centre": next_centre(torch.zeros(5, dtype=torch.float64), target_BK.mean(dim=0), 0.9),
        "sinkhorn": sinkhorn(target_BK.softmax(dim=-1), 3),
        "idle": idle_prototypes(log_assignment(online_BK, 0.5).exp()),
        "gradient": logits.grad,
    }


def _one_of_two(rank: int, folder: Path) -> None:
    part = slice(3 * rank, 3 * rank + 3)
    found = _everything(_normal(6, 5, seed=0)[part], _normal(6, 5, seed=1)[part])
    torch.save(found, folder / f"{rank}.pt")


def test_two_ranks_are_one_with_both_batches(tmp_path: Path) -> None:
    """The gradient too, once it is averaged over ranks as DDP does."""
    as_ranks(2, _one_of_two, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    whole = _everything(_normal(6, 5, seed=0), _normal(6, 5, seed=1))
    for name in ("centre", "idle"):
        torch.testing.assert_close(first[name], whole[name])
        torch.testing.assert_close(second[name], whole[name])
    torch.testing.assert_close(torch.cat([first["sinkhorn"], second["sinkhorn"]]), whole["sinkhorn"])
    torch.testing.assert_close(torch.cat([first["gradient"], second["gradient"]]) / 2, whole["gradient"])
