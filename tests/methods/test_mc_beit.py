"""mc-BEiT: targets from the tokenizer's distribution and the model's own features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.batch import Batch
from unmask.methods.mc_beit import McBEiT, McBEiTConfig
from unmask.models.tokenizers.file import open_tokenizer
from unmask.views import denormalise

Tiny = Callable[..., McBEiT]
BatchFor = Callable[..., Batch]


def _gradient(method: McBEiT) -> Tensor:
    gradient = method.get_parameter("encoder.vit.patch_embed.proj.weight").grad
    assert gradient is not None
    return gradient.clone()


@torch.no_grad()
def test_the_tokenizers_distribution_is_smoothed_by_the_temperature(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(McBEiT, changes={"temperature": 0.3})
    views = method.make_views(batch_for(method))
    assert method.config.tokenizer is not None
    pixels = denormalise(views.online, method.config.mean, method.config.std)
    logits = open_tokenizer(method.config.tokenizer).logits_for(pixels, (4, 4))
    torch.testing.assert_close(views.choices_BNV, (logits / 0.3).softmax(dim=-1))


def test_the_loss_is_the_authors_expression(tiny: Tiny, batch_for: BatchFor) -> None:
    """All patches' targets as they are written in the paper, and the gradients of both ways."""
    for through in (True, False):
        method = tiny(McBEiT, changes={"similarity_gradient": through, "similarity_temperature": 0.1, "omega": 0.6})
        views = method.make_views(batch_for(method))
        assert views.mask_BN is not None
        method.losses(views)["choices"].backward()
        found = _gradient(method)
        method.zero_grad()

        features = method.encoder(views.online, replace_BN=views.mask_BN)[:, 1:]
        unit = F.normalize(features if through else features.detach(), dim=-1)
        weights = (unit @ unit.transpose(1, 2) / 0.1).softmax(dim=-1)
        target = 0.4 * views.choices_BNV + 0.6 * weights @ views.choices_BNV
        loss = -(target * method.head(features).log_softmax(dim=-1))[views.mask_BN].sum(dim=-1).mean()
        torch.testing.assert_close(method.losses(views)["choices"], loss)
        loss.backward()
        torch.testing.assert_close(found, _gradient(method))


def test_the_gradient_through_the_similarity_counts(tiny: Tiny, batch_for: BatchFor) -> None:
    gradients = []
    for through in (True, False):
        method = tiny(McBEiT, changes={"similarity_gradient": through, "omega": 1.0})
        method.losses(method.make_views(batch_for(method)))["choices"].backward()
        gradients.append(_gradient(method))
    assert not torch.equal(gradients[0], gradients[1])


def test_with_one_certain_choice_and_no_mixing_it_is_beit(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(McBEiT, changes={"omega": 0.0})
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    ids_BN = views.choices_BNV.argmax(dim=-1)
    views = replace(views, choices_BNV=F.one_hot(ids_BN, 20).float())
    logits = method.head(method.encoder(views.online, replace_BN=views.mask_BN)[:, 1:])
    expected = F.cross_entropy(logits[views.mask_BN], ids_BN[views.mask_BN])
    torch.testing.assert_close(method.losses(views)["choices"], expected)


def test_defaults_are_the_authors() -> None:
    config = McBEiTConfig()
    assert (config.temperature, config.omega, config.similarity_temperature) == (4.0, 0.2, 1.0)
    assert config.similarity_gradient
    assert config.optimizer.betas == (0.9, 0.98)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"similarity_temperature": -1.0}, "similarity_temperature must be above 0, got -1.0"),
        ({"omega": 1.5}, "omega is a share, within 0 and 1, got 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        McBEiTConfig(**changes)
