"""Noise and consistency against a plain restatement in numpy, finite differences, and its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import Tensor
from torch.nn import functional as F

from unmask.objectives.consistency import consistency_terms, noise_and_consistency


def _logits(copies: int, images: int, classes: int, *, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(copies, images, classes, dtype=torch.float64, generator=generator)


def _restated(logits: np.ndarray, targets: np.ndarray, kl_weight: float, entropy_weight: float) -> float:
    """The loss image by image and copy by copy, with scipy's entropies. `targets` are probabilities."""
    copies, images, _ = logits.shape
    total = 0.0
    for image in range(images):
        predictions = [np.exp(row) / np.exp(row).sum() for row in logits[:, image]]
        average = sum(predictions) / copies
        total += sum(-(targets[image] * np.log(p)).sum() for p in predictions) / copies
        total += kl_weight * sum(entropy(average, p) for p in predictions) / copies
        total += entropy_weight * entropy(average)
    return total / images


def _authors(logits: Tensor, kl_weight: float, entropy_weight: float) -> Tensor:
    """The regulariser as the paper's formula reads in probabilities, with the clamp of the authors' entropy."""
    p = logits.softmax(dim=2)
    q = p.mean(dim=0)
    kl = torch.stack([F.kl_div(copy.log_softmax(dim=1), q, reduction="none").sum(dim=1) for copy in logits]).mean()
    return kl_weight * kl + entropy_weight * (-q * q.clamp(min=1e-20).log()).sum(dim=1).mean()


SIZES = {"copies": st.integers(1, 4), "images": st.integers(1, 5), "classes": st.integers(2, 7)}


@settings(max_examples=40, deadline=None)
@given(**SIZES, kl=st.floats(0, 20), ent=st.floats(0, 2), soft=st.booleans(), seed=st.integers(0, 1000))
def test_it_is_its_formula(
    copies: int, images: int, classes: int, kl: float, ent: float, soft: bool, seed: int
) -> None:
    logits = _logits(copies, images, classes, seed=seed)
    labels = torch.randint(classes, (images,), generator=torch.Generator().manual_seed(seed))
    probabilities = F.one_hot(labels, classes).double()
    if soft:
        probabilities = 0.7 * probabilities + 0.3 * probabilities.flip(0)
    found = noise_and_consistency(logits, probabilities if soft else labels, kl_weight=kl, entropy_weight=ent)
    assert found.item() == pytest.approx(_restated(logits.numpy(), probabilities.numpy(), kl, ent), rel=1e-10)


def test_the_weights_are_dmaes() -> None:
    logits, labels = _logits(2, 3, 5, seed=0), torch.tensor([0, 4, 2])
    expected = noise_and_consistency(logits, labels, kl_weight=2.0, entropy_weight=0.5)
    assert torch.equal(noise_and_consistency(logits, labels), expected)


@settings(max_examples=20, deadline=None)
@given(**SIZES, seed=st.integers(0, 1000))
def test_values_and_gradients_are_those_of_the_form_in_probabilities(
    copies: int, images: int, classes: int, seed: int
) -> None:
    ours, theirs = (_logits(copies, images, classes, seed=seed).requires_grad_() for _ in range(2))
    kl, undecided = consistency_terms(ours)
    loss, reference = 2 * kl + 0.5 * undecided, _authors(theirs, 2, 0.5)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_gradient_is_that_of_finite_differences() -> None:
    """Also through the mean prediction."""
    logits, labels = _logits(3, 2, 4, seed=1).requires_grad_(), torch.tensor([1, 3])
    assert torch.autograd.gradcheck(lambda values: noise_and_consistency(values, labels), logits)


def test_one_copy_has_nothing_to_agree_with() -> None:
    logits, labels = _logits(1, 4, 3, seed=2), torch.tensor([0, 1, 2, 0])
    kl, undecided = consistency_terms(logits)
    assert kl.item() == pytest.approx(0, abs=1e-15)
    expected = F.cross_entropy(logits[0], labels) + 0.5 * undecided
    assert noise_and_consistency(logits, labels).item() == pytest.approx(expected.item())


def test_the_terms_at_their_ends() -> None:
    """Equal copies agree; copies sure of two different classes have KL and entropy ln 2; ignorance has entropy ln K."""
    same = _logits(1, 3, 5, seed=3).expand(4, 3, 5)
    assert consistency_terms(same)[0].item() == pytest.approx(0, abs=1e-14)
    sure = torch.tensor([[[50.0, 0.0]], [[0.0, 50.0]]], dtype=torch.float64)
    kl, undecided = consistency_terms(sure)
    # KL(q || p) with q = (1/2, 1/2) and p = (1, e^-50).
    assert kl.item() == pytest.approx(25 - np.log(2), rel=1e-9)
    assert undecided.item() == pytest.approx(np.log(2), rel=1e-9)
    assert consistency_terms(torch.zeros(2, 3, 7, dtype=torch.float64))[1].item() == pytest.approx(np.log(7))


def test_a_probability_rounded_to_zero_breaks_no_gradient() -> None:
    """In probabilities it does: 0 / 0 in the gradient of q log q."""
    sure = torch.tensor([[[0.0, 200.0]], [[0.0, 180.0]]])
    ours, theirs = sure.clone().requires_grad_(), sure.clone().requires_grad_()
    noise_and_consistency(ours, torch.tensor([1])).backward()
    _authors(theirs, 2, 0.5).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.isfinite(ours.grad).all()
    assert torch.isnan(theirs.grad).all()


def test_halves_are_compared_in_float32() -> None:
    logits, labels = _logits(2, 3, 4, seed=4).bfloat16(), torch.tensor([0, 1, 2])
    found = noise_and_consistency(logits, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, noise_and_consistency(logits.float(), labels))
