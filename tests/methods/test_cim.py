"""CIM against its formulas in slow loops: sampled codes, painted images, two networks that learn apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny_tokenizers import tiny_tokenizer
from unmask.data.batch import Batch
from unmask.masking import masked_count
from unmask.methods.cim import CIM, CIMConfig, CorruptionViews, draw_codes
from unmask.models.tokenizers.base import PaintingTokenizer
from unmask.models.tokenizers.file import tokenizer_file
from unmask.training.checkpoint import write_atomically
from unmask.views import denormalise

Tiny = Callable[..., CIM]
BatchFor = Callable[..., Batch]


def by_hand(method: CIM, views: CorruptionViews) -> tuple[float, np.ndarray, Tensor]:
    """The generator's loss, the codes with its samples, and the corrupted image, patch by patch."""
    assert views.mask_BN is not None
    tokens = method.generator.patches(method.generator(views.online, replace_BN=views.mask_BN))
    logits = method.generator_head(tokens).double().numpy()
    codes = views.token_ids_BN.numpy().copy()
    entropies = []
    for sample, patch in np.ndindex(*codes.shape):
        if views.mask_BN[sample, patch]:
            powers = np.exp(logits[sample, patch] - logits[sample, patch].max())
            probabilities = powers / powers.sum()
            entropies.append(-np.log(probabilities[codes[sample, patch]]))
            total, code = 0.0, -1
            while total <= float(views.chance_BN[sample, patch]) and code < len(powers) - 1:
                code += 1
                total += probabilities[code]
            codes[sample, patch] = code
    painted = method.tokenizer.decode(torch.from_numpy(codes), method.encoder.grid)
    return float(np.mean(entropies)), codes, (painted - 0.5) / 0.25


@torch.no_grad()
@pytest.mark.parametrize("window", [3, 8])
def test_respix_restores_pixels_normalised_by_their_window(tiny: Tiny, batch_for: BatchFor, window: int) -> None:
    method = tiny(CIM, changes={"window": window, "weight": 0.5})
    views = method.make_views(batch_for(method))
    entropy, _, corrupted = by_hand(method, views)
    prediction = method.head(method.encoder.patches(method.encoder(corrupted))).double().numpy()
    images = views.online.double().numpy()
    errors = []
    for sample, row, column in np.ndindex(4, 32, 32):
        top, left = row - window // 2, column - window // 2
        around = images[sample, :, max(0, top) : top + window, max(0, left) : left + window]
        target = (images[sample, :, row, column] - around.mean()) / np.sqrt(around.var() + 1e-6)
        painted = prediction[sample, 4 * (row // 8) + column // 8].reshape(8, 8, 3)[row % 8, column % 8]
        errors.append(np.mean((painted - target) ** 2))
    losses = method.losses(views)
    assert list(losses) == ["tokens", "pixels"]
    assert losses["tokens"].item() == pytest.approx(entropy, rel=1e-5)
    assert losses["pixels"].item() == pytest.approx(0.5 * np.mean(errors), rel=1e-4)


@torch.no_grad()
def test_revdet_tells_which_codes_were_replaced(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CIM, changes={"objective": "revdet"})
    views = method.make_views(batch_for(method))
    entropy, codes, corrupted = by_hand(method, views)
    logits = method.head(method.encoder.patches(method.encoder(corrupted)))[..., 0].double().numpy()
    true = views.token_ids_BN.numpy()
    terms = [
        np.log1p(np.exp(-logits[place])) if codes[place] != true[place] else np.log1p(np.exp(logits[place]))
        for place in np.ndindex(*codes.shape)
    ]
    losses = method.losses(views)
    assert list(losses) == ["tokens", "detection"]
    assert losses["tokens"].item() == pytest.approx(entropy, rel=1e-5)
    assert losses["detection"].item() == pytest.approx(10 * np.mean(terms), rel=1e-5)
    assert method.inspect(views).reconstruction_BCHW is None


@pytest.mark.parametrize("objective", ["respix", "revdet"])
def test_generator_and_enhancer_learn_apart(tiny: Tiny, batch_for: BatchFor, objective: str) -> None:
    method = tiny(CIM, changes={"objective": objective})
    views = method.make_views(batch_for(method))
    for own, parts in ((0, ("generator.", "generator_head.")), (1, ("encoder.", "head."))):
        method.zero_grad()
        list(method.losses(views).values())[own].backward()
        touched = {name for name, value in method.named_parameters() if value.grad is not None}
        assert touched
        assert all(name.startswith(parts) for name in touched)


@torch.no_grad()
def test_only_hidden_codes_are_replaced_and_only_their_surroundings_change(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CIM)
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    sampled = method._sample(method._guess(views), views)
    assert torch.equal(sampled[~views.mask_BN], views.token_ids_BN[~views.mask_BN])
    assert not torch.equal(sampled, views.token_ids_BN)
    pixels = denormalise(views.online, (0.5,) * 3, (0.25,) * 3)
    untouched = denormalise(method.paint(views.token_ids_BN), (0.5,) * 3, (0.25,) * 3)
    torch.testing.assert_close(untouched, method.tokenizer.reconstruct(pixels))


def test_chances_do_not_depend_on_the_masks_or_flips(tiny: Tiny, batch_for: BatchFor) -> None:
    """Drawn from the masks' generator, the chance of every hidden patch would be above the median."""
    method = tiny(CIM)
    views = method.make_views(batch_for(method, 64, seed=3))
    assert views.mask_BN is not None
    hidden, visible = views.chance_BN[views.mask_BN], views.chance_BN[~views.mask_BN]
    assert abs(hidden.mean().item() - 0.5) < 0.05
    assert abs(visible.mean().item() - 0.5) < 0.05
    again = method.make_views(batch_for(method, 64, seed=3))
    assert torch.equal(again.chance_BN, views.chance_BN)


def test_codes_are_drawn_as_often_as_they_are_probable() -> None:
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0])
    chances = (torch.arange(10_000) + 0.5) / 10_000
    drawn = draw_codes(logits.expand(10_000, -1), chances)
    shares = torch.bincount(drawn, minlength=4) / 10_000
    torch.testing.assert_close(shares, logits.softmax(dim=0), atol=2e-4, rtol=0)
    extremes = draw_codes(torch.tensor([[0.0, 0.0], [-200.0, 0.0]]), torch.tensor([1 - 2**-24, 0.0]))
    assert extremes.tolist() == [1, 1]


@torch.no_grad()
def test_a_tokenizer_of_another_stride_paints_images_of_the_encoders_size(
    tiny: Tiny, batch_for: BatchFor, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.safetensors"
    tokenizer = tiny_tokenizer("dvae")
    write_atomically(path, *tokenizer_file(tokenizer, {}))
    method = tiny(CIM, patch=16, height=32, width=64, changes={"tokenizer": str(path)})
    views = method.make_views(batch_for(method))
    assert isinstance(tokenizer, PaintingTokenizer)
    assert tokenizer.decode(views.token_ids_BN, (2, 4)).shape == (4, 3, 16, 32)
    assert method.paint(views.token_ids_BN).shape == views.online.shape


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dvae", "vq"])
def test_decoding_an_images_codes_reconstructs_it(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    assert isinstance(tokenizer, PaintingTokenizer)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    painted = tokenizer.decode(tokenizer.ids(images), (2, 3))
    assert painted.shape == images.shape
    assert torch.equal(painted, tokenizer.reconstruct(images))
    assert 0 <= painted.min() <= painted.max() <= 1


def test_a_tokenizer_that_cannot_paint_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    write_atomically(path, *tokenizer_file(tiny_tokenizer("vqkd"), {}))
    sentence = (
        r"^CIM paints images from codes, which this tokenizer cannot; train one of kind dvae or vq with "
        r"`unmask tokenizer train DATA`$"
    )
    with pytest.raises(ValueError, match=sentence):
        tiny(CIM, changes={"tokenizer": str(path)})
    with pytest.raises(ValueError, match=r"^this method predicts the codes of an image tokenizer: train one with "):
        CIM(CIMConfig())


def test_the_default_mask_hides_110_of_196_patches() -> None:
    assert masked_count(CIMConfig().mask, (14, 14)) == 110


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("window", 1, "window must be at least 2 pixels, got 1"),
        ("weight", -1.0, "weight must be 0 or more, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        replace(CIMConfig(), **{field: value})
