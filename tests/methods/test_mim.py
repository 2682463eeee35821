"""The mutual information machine against its formula, term by term, image by image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from unmask.data.batch import Batch
from unmask.methods.mim import MIM, MIMConfig, log_normal

Tiny = Callable[..., MIM]
BatchFor = Callable[..., Batch]


@torch.no_grad()
@pytest.mark.parametrize("deviation", [1.0, 0.3])
def test_the_losses_are_the_papers_objective_image_by_image(tiny: Tiny, batch_for: BatchFor, deviation: float) -> None:
    """log q(x) is the bound from the marginal of p; nothing is cancelled here."""
    method = tiny(MIM, changes={"pixel_deviation": deviation, "latent": 6}).double()
    views = method.make_views(batch_for(method))
    views = replace(
        views,
        online=views.online.double(),
        noise_3BZ=views.noise_3BZ.double(),
        pixel_noise_BCHW=views.pixel_noise_BCHW.double(),
    )
    prior = Normal(0.0, 1.0)

    def term(image: torch.Tensor, code: torch.Tensor, noise: torch.Tensor | None) -> float:
        """-1/2 [log p(x|z) + log p(z) + log q(z|x) + log q(x)] for one pair; `noise` draws the y of log q(x), which
        is the code itself where there is none."""
        mean, log_deviation = method.encode(image[None])
        posterior = Normal(mean[0], log_deviation[0].exp())
        other = code if noise is None else mean[0] + log_deviation[0].exp() * noise

        def likelihood(given: torch.Tensor) -> torch.Tensor:
            pixels = Normal(method.decode(given[None])[0], deviation)
            return pixels.log_prob(image).sum() + prior.log_prob(given).sum()

        marginal = likelihood(other) - posterior.log_prob(other).sum()
        return -0.5 * float(likelihood(code) + posterior.log_prob(code).sum() + marginal)

    encoding, decoding = [], []
    for sample in range(4):
        image = views.online[sample]
        mean, log_deviation = method.encode(image[None])
        code = mean[0] + log_deviation[0].exp() * views.noise_3BZ[0, sample]
        encoding.append(term(image, code, None))
        code = views.noise_3BZ[1, sample]
        made = method.decode(code[None])[0] + deviation * views.pixel_noise_BCHW[sample]
        decoding.append(term(made, code, views.noise_3BZ[2, sample]))
    values = 3 * 32 * 32
    losses = method.losses(views)
    assert list(losses) == ["encoding", "decoding"]
    assert losses["encoding"].item() == pytest.approx(0.5 * np.mean(encoding) / values, rel=1e-9)
    assert losses["decoding"].item() == pytest.approx(0.5 * np.mean(decoding) / values, rel=1e-9)
    one_sided = tiny(MIM, changes={"pixel_deviation": deviation, "latent": 6, "symmetric": False}).double()
    alone = one_sided.losses(views)
    assert list(alone) == ["encoding"]
    assert alone["encoding"].item() == pytest.approx(np.mean(encoding) / values, rel=1e-9)


def test_gradients_reach_both_networks_from_both_distributions(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MIM)
    views = method.make_views(batch_for(method))
    for name in ("encoding", "decoding"):
        method.zero_grad()
        method.losses(views)[name].backward()
        touched = {key.split(".")[0] for key, value in method.named_parameters() if value.grad is not None}
        assert touched == {"encoder", "posterior", "decoder"}


@torch.no_grad()
def test_pictures_are_decoded_from_the_mean_code(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MIM).eval()
    views = method.make_views(batch_for(method))
    shown = method.inspect(views).reconstruction_BCHW
    assert shown is not None
    one = method.decode(method.encode(views.online[1:2])[0])
    torch.testing.assert_close(shown[1:2], one)


def test_noise_is_standard_normal_and_of_its_own_for_each_use(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MIM)
    views = method.make_views(batch_for(method, 32))
    noise = views.noise_3BZ.flatten(1)
    assert (noise.mean(dim=1).abs() < 0.1).all()
    assert (noise.std(dim=1) - 1).abs().max() < 0.1
    assert torch.corrcoef(noise).triu(1).abs().max() < 0.15


def test_log_normal_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    values, mean, log_deviation = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
    expected = Normal(mean, log_deviation.exp()).log_prob(values).sum(dim=1)
    torch.testing.assert_close(log_normal(values, mean, log_deviation), expected)
    zero = torch.zeros((), dtype=torch.float64)
    assert log_normal(torch.zeros(1, 2, dtype=torch.float64), zero, zero).item() == pytest.approx(
        -math.log(2 * math.pi)
    )


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^latent must be at least 1, got 0$"):
        MIMConfig(latent=0)
    with pytest.raises(ValueError, match=r"^pixel_deviation must be above 0, got 0$"):
        MIMConfig(pixel_deviation=0)
