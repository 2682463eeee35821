"""Contrastive objectives against slow loops, and what they must not look at."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.objectives.contrastive import batch_infonce, ntxent, patch_infonce
from unmask.ranks import gather_without_gradient


def _features(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _masks(batch: int, patches: int, seed: int) -> Tensor:
    """Masks with counts that differ; at least one patch of the batch is hidden."""
    generator = torch.Generator().manual_seed(seed)
    counts_B1 = torch.randint(patches + 1, (batch, 1), generator=generator)
    counts_B1[seed % batch] = max(1, int(counts_B1[seed % batch]))
    return torch.rand(batch, patches, generator=generator).argsort(dim=1) < counts_B1


def _slow_patch_infonce(online_BND: Tensor, target_BND: Tensor, mask_BN: Tensor, temperature: float) -> float:
    """Equation 5 of ConMIM, patch by patch."""
    losses = []
    for online_ND, target_ND, mask_N in zip(online_BND, target_BND, mask_BN, strict=True):
        for position in mask_N.nonzero().flatten().tolist():
            query_D = online_ND[position] / online_ND[position].norm()
            similarities = [float(query_D @ key_D / key_D.norm()) / temperature for key_D in target_ND]
            losses.append(math.log(sum(map(math.exp, similarities))) - similarities[position])
    return sum(losses) / len(losses)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 4),
    patches=st.integers(1, 9),
    width=st.integers(1, 6),
    temperature=st.floats(0.05, 2),
    seed=st.integers(0, 1000),
)
def test_patch_infonce_is_the_papers_formula(
    batch: int, patches: int, width: int, temperature: float, seed: int
) -> None:
    online_BND = _features(batch, patches, width, seed=seed)
    target_BND = _features(batch, patches, width, seed=seed + 1)
    mask_BN = _masks(batch, patches, seed)
    expected = _slow_patch_infonce(online_BND, target_BND, mask_BN, temperature)
    assert patch_infonce(online_BND, target_BND, mask_BN, temperature).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("patches", [5, 196])
def test_patch_infonce_of_constant_features_is_the_log_of_the_number_of_patches(patches: int) -> None:
    constant = torch.ones(2, patches, 4, dtype=torch.float64)
    loss = patch_infonce(constant, 3 * constant, _masks(2, patches, 0), 0.1)
    assert loss.item() == pytest.approx(math.log(patches), rel=1e-12)


def test_patch_infonce_of_orthogonal_features_that_agree() -> None:
    features = torch.eye(8, dtype=torch.float64).expand(2, 8, 8)
    expected = math.log(math.exp(10) + 7) - 10
    assert patch_infonce(features, features, _masks(2, 8, 1), 0.1).item() == pytest.approx(expected, rel=1e-9)


def test_queries_are_the_hidden_patches_and_keys_are_all() -> None:
    online, target = _features(3, 7, 4, seed=0).requires_grad_(), _features(3, 7, 4, seed=1).requires_grad_()
    mask_BN = torch.rand(3, 7, generator=torch.Generator().manual_seed(5)) < 0.5
    mask_BN[0] = False
    patch_infonce(online, target, mask_BN, 0.1).backward()
    assert online.grad is not None
    assert target.grad is not None
    assert torch.equal(online.grad.abs().sum(dim=-1) > 0, mask_BN)
    # Every patch of an image with queries is a key, hidden or not; an image without queries gives none.
    assert torch.equal(target.grad.abs().sum(dim=-1) > 0, mask_BN.any(dim=1, keepdim=True).expand(3, 7))


def test_visible_online_features_and_other_images_change_nothing() -> None:
    online, target = _features(2, 9, 4, seed=0), _features(2, 9, 4, seed=1)
    mask_BN = _masks(2, 9, 3)
    loss = patch_infonce(online, target, mask_BN, 0.1)
    visible = torch.where(mask_BN[..., None], online, _features(2, 9, 4, seed=2))
    assert torch.equal(patch_infonce(visible, target, mask_BN, 0.1), loss)
    alone = [patch_infonce(online[i : i + 1], target[i : i + 1], mask_BN[i : i + 1], 0.1) for i in range(2)]
    share = mask_BN.sum(dim=1) / mask_BN.sum()
    torch.testing.assert_close(loss, share[0] * alone[0] + share[1] * alone[1])


def test_patch_infonce_ignores_the_length_of_features() -> None:
    online, target = _features(2, 9, 4, seed=0), _features(2, 9, 4, seed=1)
    lengths = 0.1 + torch.rand(2, 9, 1, generator=torch.Generator().manual_seed(0)) * 10
    mask_BN = _masks(2, 9, 3)
    torch.testing.assert_close(
        patch_infonce(online * lengths, target * lengths.flip(1), mask_BN, 0.2),
        patch_infonce(online, target, mask_BN, 0.2),
    )


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 6), width=st.integers(1, 6), temperature=st.floats(0.05, 2), seed=st.integers(0, 1000))
def test_batch_infonce_is_the_cross_entropy_of_cosines(batch: int, width: int, temperature: float, seed: int) -> None:
    online, target = _features(batch, width, seed=seed), _features(batch, width, seed=seed + 1)
    losses = []
    for own in range(batch):
        query = online[own] / online[own].norm()
        logits = [float(query @ key / key.norm()) / temperature for key in target]
        losses.append(math.log(sum(map(math.exp, logits))) - logits[own])
    expected = sum(losses) / batch
    assert batch_infonce(online, target, temperature).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_batch_infonce_of_uniform_logits_is_the_log_of_the_batch() -> None:
    constant = torch.ones(12, 4, dtype=torch.float64)
    assert batch_infonce(constant, constant, 0.07).item() == pytest.approx(math.log(12), rel=1e-12)


def test_batch_infonce_goes_one_way() -> None:
    online, target = _features(5, 4, seed=0).requires_grad_(), _features(5, 4, seed=1).requires_grad_()
    batch_infonce(online, target, 0.07).backward()
    assert online.grad is not None
    assert target.grad is None


def test_without_a_process_group_the_batch_is_all_there_is() -> None:
    features = _features(5, 4, seed=0).requires_grad_()
    gathered, offset = gather_without_gradient(features)
    assert offset == 0
    assert torch.equal(gathered, features)
    assert not gathered.requires_grad


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 5), width=st.integers(1, 6), temperature=st.floats(0.05, 2), seed=st.integers(0, 1000))
def test_ntxent_is_simclrs_formula(batch: int, width: int, temperature: float, seed: int) -> None:
    """Each of 2B features is a query; all others are keys; the positive stays in the denominator."""
    first, second = _features(batch, width, seed=seed), _features(batch, width, seed=seed + 1)
    features = [feature / feature.norm() for feature in torch.cat([first, second])]
    losses = []
    for own, query in enumerate(features):
        logits = {other: float(query @ key) / temperature for other, key in enumerate(features) if other != own}
        losses.append(math.log(sum(map(math.exp, logits.values()))) - logits[(own + batch) % (2 * batch)])
    expected = sum(losses) / (2 * batch)
    assert ntxent(first, second, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert ntxent(second, first, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_ntxent_of_constant_features_is_the_log_of_all_others() -> None:
    constant = torch.ones(12, 4, dtype=torch.float64)
    assert ntxent(constant, constant, 0.1).item() == pytest.approx(math.log(23), rel=1e-12)
    assert ntxent(constant[:1], constant[:1], 0.1).item() == 0


def test_ntxents_gradient_flows_through_both_sides() -> None:
    first, second = _features(3, 4, seed=0).requires_grad_(), _features(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ntxent(a, b, 0.5), (first, second))
