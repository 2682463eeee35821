"""The codebook follows its features as NumPy would, restarts what is dead, and passes gradients straight through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unmask.models.tokenizers.codebook import Codebook, CodebookConfig


def unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def started(codes: int, width: int, *, momentum: float = 0.9, restart_after: int = 0) -> Codebook:
    config = CodebookConfig(width=width, momentum=momentum, restart_after=restart_after)
    codebook = Codebook(config, codes).double()
    rows = torch.randn(codes, width, generator=generator(1), dtype=torch.float64)
    codebook.codes_VD.copy_(torch.nn.functional.normalize(rows, dim=-1))
    codebook.started.fill_(True)
    return codebook


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), codes=st.integers(2, 9), momentum=st.floats(0, 0.99))
def test_it_moves_as_a_loop_in_numpy_does(seed: int, codes: int, momentum: float) -> None:
    codebook = Codebook(CodebookConfig(width=5, momentum=momentum, restart_after=0), codes)
    random = np.random.default_rng(seed)
    reference = unit(random.normal(size=(codes, 5)))
    codebook.codes_VD.copy_(torch.from_numpy(reference))
    codebook.started.fill_(True)
    spread = 1.0
    for _ in range(3):
        features = random.normal(size=(11, 5))
        named = np.argmax(unit(features) @ reference.T, axis=1)
        found = codebook.learn(torch.from_numpy(features).float(), generator())
        assert found.ids_N.tolist() == named.tolist()
        error = ((unit(features) - reference[named]) ** 2).mean()
        np.testing.assert_allclose(float(found.commitment), error, rtol=1e-4)
        spread = momentum * spread + (1 - momentum) * error
        for code in set(named.tolist()):
            mean = unit(unit(features)[named == code].mean(axis=0))
            reference[code] = unit(momentum * reference[code] + (1 - momentum) * mean)
        np.testing.assert_allclose(codebook.codes_VD.numpy(), reference, atol=1e-5)
        np.testing.assert_allclose(float(codebook.spread), spread, rtol=1e-4)


def test_gradients_pass_straight_through() -> None:
    codebook = Codebook(CodebookConfig(width=4, commitment=0.0), 6)
    codebook.codes_VD.copy_(torch.nn.functional.normalize(torch.randn(6, 4, generator=generator()), dim=-1))
    features = torch.randn(10, 4, generator=generator(2), requires_grad=True)
    weights = torch.randn(10, 4, generator=generator(3))
    found = codebook.quantise(features)
    assert torch.allclose(found.codes_ND, codebook.codes_VD[found.ids_N])
    (found.codes_ND * weights).sum().backward()
    plain = features.detach().clone().requires_grad_()
    (torch.nn.functional.normalize(plain, dim=-1) * weights).sum().backward()
    assert features.grad is not None
    assert plain.grad is not None
    assert torch.allclose(features.grad, plain.grad)


def test_half_precision_around_it_changes_nothing() -> None:
    features = torch.randn(40, 8, generator=generator(2))
    plain, cast = (Codebook(CodebookConfig(width=8), 12) for _ in range(2))
    for step in range(3):
        expected = plain.learn(features, generator(step))
        with torch.autocast("cpu", torch.bfloat16):
            found = cast.learn(features, generator(step))
        assert torch.equal(found.ids_N, expected.ids_N)
        assert torch.equal(found.codes_ND, expected.codes_ND)
    assert torch.equal(cast.codes_VD, plain.codes_VD)


def test_codes_that_nothing_hits_start_anew_among_the_features() -> None:
    codebook = started(4, 3, restart_after=3).float()
    direction = codebook.codes_VD[2].clone()
    features = direction + 0.01 * torch.randn(50, 3, generator=generator())
    for step in range(1, 4):
        before = codebook.codes_VD.clone()
        found = codebook.learn(features, generator(step))
        assert set(found.ids_N.tolist()) == {2}
        if step < 3:
            assert torch.equal(codebook.codes_VD[[0, 1, 3]], before[[0, 1, 3]])
            assert codebook.idle_V.tolist() == [step, step, 0, step]
    unit_features = torch.nn.functional.normalize(features, dim=-1)
    for code in (0, 1, 3):
        assert (unit_features - codebook.codes_VD[code]).abs().sum(dim=-1).min() == 0
    assert codebook.idle_V.tolist() == [0, 0, 0, 0]
    # From now on several of them name the features.
    assert len(set(codebook.quantise(features).ids_N.tolist())) > 1


def test_dead_codes_stay_dead_where_the_user_says_so() -> None:
    codebook = started(4, 3, restart_after=0).float()
    features = codebook.codes_VD[2].expand(8, 3)
    before = codebook.codes_VD.clone()
    for step in range(300):
        codebook.learn(features, generator(step))
    assert torch.equal(codebook.codes_VD[[0, 1, 3]], before[[0, 1, 3]])


def test_k_means_finds_clusters_and_happens_once() -> None:
    centres = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator(4)), dim=-1)
    features = (centres.repeat(40, 1) + 0.02 * torch.randn(200, 8, generator=generator(5))) * 3
    codebook = Codebook(CodebookConfig(width=8), 20)
    codebook.start(features, generator(6))
    assert bool(codebook.started)
    assert torch.allclose(codebook.codes_VD.norm(dim=-1), torch.ones(20))
    assert float((centres @ codebook.codes_VD.T).amax(dim=-1).min()) > 0.99
    codes = codebook.codes_VD.clone()
    codebook.start(-features, generator(7))
    assert torch.equal(codebook.codes_VD, codes)


def test_fewer_features_than_codes_still_start() -> None:
    codebook = Codebook(CodebookConfig(width=3), 16)
    codebook.learn(torch.randn(5, 3, generator=generator()), generator())
    assert torch.isfinite(codebook.codes_VD).all()
    assert torch.allclose(codebook.codes_VD.norm(dim=-1), torch.ones(16))
    assert torch.isfinite(codebook.logits(torch.randn(2, 3))).all()


def test_logits_are_the_posterior_of_equal_gaussians_of_the_measured_spread() -> None:
    codebook = started(7, 5)
    codebook.spread.fill_(0.03)
    features = torch.randn(6, 5, generator=generator(8), dtype=torch.float64)
    points = unit(features.numpy())
    squared = ((points[:, None] - codebook.codes_VD.numpy()) ** 2).sum(axis=-1)
    density = np.exp(-squared / (2 * 0.03))
    expected = density / density.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(codebook.logits(features).softmax(dim=-1).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"width": 0}, "codes need a width of at least 1, got 0"),
        ({"momentum": 1.0}, r"the codebook's momentum must lie in \[0, 1\), got 1.0"),
        ({"restart_after": -1}, "restart_after and commitment must be 0 or more"),
    ],
)
def test_impossible_codebooks_are_refused(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        CodebookConfig(**values)  # type: ignore[arg-type]
