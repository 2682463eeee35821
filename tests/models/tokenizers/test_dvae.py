"""The discrete VAE's own parts: its distribution of pixels, its noise, its schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from tiny_tokenizers import tiny_tokenizer
from unmask.models.tokenizers.base import Lesson
from unmask.models.tokenizers.conv import ConvConfig, map_pixels, unmap_pixels
from unmask.models.tokenizers.dvae import (
    DVAE,
    DVAEConfig,
    divergence_from_uniform,
    gumbel_noise,
    logit_laplace_loss,
)
from unmask.schedule import Schedule


@pytest.mark.parametrize(("location", "log_scale"), [(0.3, -1.0), (-2.0, 0.4)])
def test_the_likelihood_is_that_of_a_logit_laplace_distribution(location: float, log_scale: float) -> None:
    def density(x: float) -> float:
        values = [torch.tensor([v], dtype=torch.float64) for v in (x, location, log_scale)]
        return math.exp(-float(logit_laplace_loss(*values)))

    area, _ = integrate.quad(density, 1e-9, 1 - 1e-9, limit=200)
    assert area == pytest.approx(1, abs=1e-3)
    x = 0.7
    expected = stats.laplace.pdf(np.log(x / (1 - x)), loc=location, scale=math.exp(log_scale)) / (x * (1 - x))
    assert density(x) == pytest.approx(expected)


def test_plain_areas_cannot_be_worth_everything() -> None:
    values = torch.full((4,), 0.1)
    exact = torch.logit(values)
    losses = [float(logit_laplace_loss(values, exact, torch.full((4,), scale))) for scale in (-4.0, -50.0)]
    assert losses[0] == losses[1]


def test_the_divergence_is_none_for_equal_codes_and_the_logarithm_for_sure_ones() -> None:
    logits = torch.zeros(2, 8, 3, 3)
    assert float(divergence_from_uniform(logits)) == pytest.approx(0, abs=1e-6)
    logits[:, 3] = 1000
    assert float(divergence_from_uniform(logits)) == pytest.approx(math.log(8))


def test_gumbel_noise_has_its_distribution() -> None:
    noise = gumbel_noise(torch.empty(200, 100), torch.Generator().manual_seed(0))
    assert torch.isfinite(noise).all()
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 0.01


def test_pixels_there_and_back() -> None:
    values = torch.linspace(0, 1, 11).reshape(1, 1, 1, 11)
    assert torch.allclose(unmap_pixels(map_pixels(values)), values, atol=1e-6)
    assert float(map_pixels(values).min()) == pytest.approx(0.1)
    assert float(map_pixels(values).max()) == pytest.approx(0.9)


def test_schedules_follow_the_progress(images: torch.Tensor) -> None:
    """The weight of the divergence rises to beta per value; colder samples are nearer to one code."""
    tokenizer = tiny_tokenizer("dvae")
    assert isinstance(tokenizer, DVAE)

    def losses(progress: float) -> dict[str, float]:
        found = tokenizer.losses(images, Lesson(progress, torch.Generator().manual_seed(0)))
        return {name: loss.item() for name, loss in found.items()}

    assert losses(0.0)["divergence"] == 0
    full, half = losses(0.1)["divergence"], losses(0.05)["divergence"]
    assert half == pytest.approx(full / 2)
    assert losses(1.0)["divergence"] == pytest.approx(full)
    plain = divergence_from_uniform(tokenizer.encoder(map_pixels(images))).item()
    assert full == pytest.approx(6.6 / 192 * plain)
    assert losses(0.2)["reconstruction"] != losses(0.5)["reconstruction"] == losses(0.9)["reconstruction"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": Schedule(start=0.0)}, "the temperature of relaxed samples must stay above 0"),
        ({"beta": -1.0}, "beta must be 0 or more, got -1.0"),
        ({"beta_until": 1.5}, "beta_until is a share of the run, within 0 and 1, got 1.5"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        DVAEConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"stride": 6}, "the tokenizer's stride must be a power of two, got 6"),
        ({"stride": 0}, "the tokenizer's stride must be a power of two, got 0"),
        ({"width": 6}, "the tokenizer's width must be a multiple of 4, got 6"),
        ({"blocks": 0}, "each group needs at least 1 block, got 0"),
    ],
)
def test_impossible_networks_are_refused(values: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        ConvConfig(**values)
