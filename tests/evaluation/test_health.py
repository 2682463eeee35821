"""What is said of an encoder's health is measured right, said when it is bad, and only then."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.evaluation.health import Health, diagnose, measure, probe
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig

HEALTHY = Health(feature_std=0.6, effective_rank=40.0, positive_similarity=0.8, negative_similarity=0.3)


def by_loops(first_BD: Tensor, second_BD: Tensor) -> Health:
    """The same figures, one image and one dimension at a time."""
    first, second = first_BD.double().tolist(), second_BD.double().tolist()
    count, width = len(first), len(first[0])

    def cosine(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))

    unit = [[value / math.hypot(*row) for value in row] for row in first]
    deviations = []
    for column in zip(*unit, strict=True):
        mean = sum(column) / count
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in column) / count))
    # Singular values as roots of the eigenvalues of the Gram matrix.
    products = [[sum(a * b for a, b in zip(i, j, strict=True)) for j in first] for i in first]
    gram_BB = torch.tensor(products, dtype=torch.float64)
    values = [math.sqrt(max(value, 0.0)) for value in torch.linalg.eigvalsh(gram_BB).tolist()]
    shares = [value / sum(values) for value in values]
    others = [cosine(first[i], second[j]) for i, j in product(range(count), repeat=2) if i != j]
    return Health(
        feature_std=sum(deviations) / width * math.sqrt(width),
        effective_rank=math.exp(-sum(share * math.log(share) for share in shares if share > 0)),
        positive_similarity=sum(cosine(a, b) for a, b in zip(first, second, strict=True)) / count,
        negative_similarity=sum(others) / len(others),
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 7), width=st.integers(2, 9))
def test_figures_are_those_of_the_definition(seed: int, count: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, count, width, generator=generator)
    found, expected = measure(first, second).as_dict(), by_loops(first, second).as_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_figures_do_not_depend_on_the_scale_of_features() -> None:
    first, second = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0))
    one, other = measure(first, second), measure(first * 1000, second * 0.01)
    for name, value in one.as_dict().items():
        assert other.as_dict()[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_constant_features_are_a_collapse() -> None:
    constant = torch.ones(16, 8)
    warnings = diagnose(measure(constant, constant), HEALTHY)
    assert len(warnings) == 3
    collapse, rank, alike = warnings
    assert collapse.startswith(
        "Features of different images are nearly the same (deviation 0.000 of 1): the encoder is collapsing."
    )
    assert rank.startswith("Features use only 1.0 directions: most of the encoder's width is idle.")
    assert alike.startswith("Two views of one image are no more alike (cosine 1.000) than two images (1.000):")
    # Each says what to try.
    for sentence, remedy in zip(warnings, ("Lower --lr", "Train longer", "try weaker colour"), strict=True):
        assert remedy in sentence


def test_healthy_features_are_met_with_silence() -> None:
    assert diagnose(HEALTHY, HEALTHY) == []
    views = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    assert diagnose(measure(views, views + 0.1), HEALTHY) == []


def test_a_start_that_was_no_better_is_no_reason_to_warn() -> None:
    # Features of a random encoder are narrow, and no fault of the training.
    narrow = replace(HEALTHY, feature_std=0.03, effective_rank=1.8)
    assert diagnose(narrow, narrow) == []
    assert len(diagnose(narrow, HEALTHY)) == 2


def test_features_that_are_not_finite_are_refused() -> None:
    features = torch.ones(4, 3)
    features[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"^features hold NaN or infinite values"):
        measure(features, features)


@pytest.mark.parametrize("training", [True, False])
def test_a_look_leaves_the_encoder_as_it_was(training: bool) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", image_height=32, image_width=32, patch_size=8, width=32, depth=1, heads=2,
        drop_path=0.5,
    )  # fmt: skip
    encoder = build_encoder(config, mask_token=False).train(training)
    first, second = torch.randn(2, 6, 3, 32, 32)
    health = probe(encoder, first, second)
    assert encoder.training is training
    assert all(parameter.grad is None for parameter in encoder.parameters())
    # Without the chance of stochastic depth: the same look, the same figures.
    assert probe(encoder, first, second) == health
    with torch.no_grad():
        features = [encoder.eval().pool(encoder(images)) for images in (first, second)]
    assert measure(*features) == health
