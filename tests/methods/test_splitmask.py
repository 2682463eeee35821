"""SplitMask against its formulas in slow loops: disjoint halves, tokens of hidden patches, two halves that match."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_tokenizers import tiny_tokenizer
from unmask.data.batch import Batch
from unmask.methods.splitmask import SplitMask, SplitMaskConfig
from unmask.models.random_codebook import RandomCodebook
from unmask.models.tokenizers.file import tokenizer_file
from unmask.objectives.reconstruction import patchify
from unmask.training.checkpoint import write_atomically

Tiny = Callable[..., SplitMask]
BatchFor = Callable[..., Batch]


def test_halves_are_disjoint_and_cover_all_patches(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(SplitMask)
    masks_B2N = method.make_views(batch_for(method)).masks_B2N
    assert masks_B2N.shape == (4, 2, 16)
    assert torch.equal(masks_B2N[:, 0], ~masks_B2N[:, 1])
    assert masks_B2N.sum(dim=2).eq(8).all()
    assert not torch.equal(masks_B2N[0], masks_B2N[1])


def test_of_an_odd_number_of_patches_one_is_hidden_from_both(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(SplitMask, height=24, width=24)
    views = method.make_views(batch_for(method))
    assert views.masks_B2N.sum(dim=2).eq(5).all()
    assert views.masks_B2N.all(dim=1).sum(dim=1).eq(1).all()
    assert math.isfinite(method.losses(views)["tokens"].item())


@torch.no_grad()
@pytest.mark.parametrize(("temperature", "weight"), [(0.2, 1.0), (0.5, 0.3)])
def test_both_losses_are_the_formulas_in_loops(
    tiny: Tiny, batch_for: BatchFor, temperature: float, weight: float
) -> None:
    method = tiny(SplitMask, changes={"temperature": temperature, "match_weight": weight})
    views = method.make_views(batch_for(method))
    entropies = []
    pooled: list[list[np.ndarray]] = [[], []]
    for sample in range(4):
        for half in range(2):
            # One half of one image at a time.
            mask = views.masks_B2N[sample, half][None]
            seen = method.encoder(views.online[sample : sample + 1], drop_BN=mask)
            decoded = method.decoder(seen, mask)
            logits = method.decoder.predict(decoded)[0].double().numpy()
            pooled[half].append(decoded[0].double().numpy().mean(axis=0))
            for patch in range(16):
                if mask[0, patch]:
                    token = int(views.token_ids_BN[sample, patch])
                    entropies.append(np.log(np.exp(logits[patch]).sum()) - logits[patch, token])
    units = np.stack([*pooled[0], *pooled[1]])
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    matches = []
    for query in range(8):
        powers = [np.exp(units[query] @ units[key] / temperature) for key in range(8)]
        matches.append(-np.log(powers[(query + 4) % 8] / (sum(powers) - powers[query])))
    losses = method.losses(views)
    assert list(losses) == ["tokens", "match"]
    assert losses["tokens"].item() == pytest.approx(np.mean(entropies), rel=1e-5)
    assert losses["match"].item() == pytest.approx(weight * np.mean(matches), rel=1e-5)


@torch.no_grad()
def test_what_a_half_hides_it_does_not_see(tiny: Tiny, batch_for: BatchFor) -> None:
    """With the second half's pixels gone, what the first half says stays the same."""
    method = tiny(SplitMask)
    views = method.make_views(batch_for(method))
    first = views.masks_B2N[:, 0]
    hidden = first.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    gone = torch.where(hidden, torch.zeros(()), views.online)
    both = torch.cat([first, views.masks_B2N[:, 1]])
    whole, half = (method.encoder(images, drop_BN=both) for images in (views.online, gone))
    assert torch.equal(whole[:4], half[:4])
    assert not torch.equal(whole[4:], half[4:])


@torch.no_grad()
def test_tokens_come_from_random_directions_without_a_tokenizer(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(SplitMask, changes={"vocabulary": 50, "codebook_seed": 4})
    views = method.make_views(batch_for(method))
    assert isinstance(method.tokenizer, RandomCodebook)
    assert torch.equal(
        views.token_ids_BN, RandomCodebook(50, 192, seed=4).ids(patchify(views.online, method.encoder.patch))
    )
    assert method.decoder.head.out_features == 50
    assert "tokenizer.codes_VK" in method.state_dict()


@torch.no_grad()
def test_tokens_come_from_a_tokenizers_file(tiny: Tiny, batch_for: BatchFor, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    tokenizer = tiny_tokenizer("vq")
    write_atomically(path, *tokenizer_file(tokenizer, {}))
    method = tiny(SplitMask, changes={"tokenizer": str(path)})
    views = method.make_views(batch_for(method))
    pixels = views.online * 0.25 + 0.5
    assert torch.equal(views.token_ids_BN, tokenizer.tokens_for(pixels.clamp(0, 1), (4, 4)))
    assert method.decoder.head.out_features == tokenizer.vocabulary
    assert all(math.isfinite(loss.item()) for loss in method.losses(views).values())


def test_settings_out_of_range_are_refused() -> None:
    config = SplitMaskConfig()
    assert (config.decoder.depth, config.vocabulary) == (2, 8192)
    with pytest.raises(ValueError, match=r"^a vocabulary needs at least 2 codes, got 1$"):
        replace(config, vocabulary=1)
    with pytest.raises(ValueError, match=r"^temperature must be above 0, got 0$"):
        replace(config, temperature=0)
    with pytest.raises(ValueError, match=r"^match_weight must be 0 or more, got -1$"):
        replace(config, match_weight=-1)
    with pytest.raises(ValueError, match=r"^there is no tokenizer file nowhere$"):
        SplitMask(replace(config, tokenizer="nowhere"))
