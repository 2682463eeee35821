"""What a tokenizer is worth, in figures, words and pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_tokenizers import CODES, tiny_teacher, tiny_tokenizer
from unmask.models.tokenizers.base import PaintingTokenizer
from unmask.tokenizer_training.quality import Quality, measure, sheet


@pytest.fixture
def images() -> torch.Tensor:
    """Images [70, 3, 16, 24] in [0, 1], more than are looked at together."""
    return torch.rand(70, 3, 16, 24, generator=torch.Generator().manual_seed(3))


def quality(**values: Any) -> Quality:
    usual = {"error": 0.1, "pixels": True, "vocabulary": 100, "tokens": 1000, "used": 90, "perplexity": 60.0}
    return Quality(**usual | values)


@pytest.mark.parametrize("kind", ["dvae", "vq", "vqkd"])
def test_figures_are_those_of_a_plain_count(kind: str, images: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer(kind)
    teacher = tiny_teacher()
    found = measure(tokenizer, images, teacher)
    counts = np.bincount(tokenizer.ids(images).flatten().numpy(), minlength=CODES)
    shares = counts[counts > 0] / counts.sum()
    assert (found.vocabulary, found.tokens, found.used) == (CODES, 70 * 6, int((counts > 0).sum()))
    assert found.perplexity == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())))
    assert 1 <= found.perplexity <= found.used
    assert found.pixels == isinstance(tokenizer, PaintingTokenizer)
    if isinstance(tokenizer, PaintingTokenizer):
        with torch.no_grad():
            error = (tokenizer.reconstruct(images) - images).square().mean().sqrt()
        assert found.error == pytest.approx(float(error), rel=1e-4)
    else:
        assert 0 <= found.error <= 2


def test_figures_in_words() -> None:
    assert str(quality()) == (
        "root mean square error of pixels in [0, 1] 0.1000; 90 of 100 codes in use (90 %), perplexity 60.0"
    )
    assert str(quality(pixels=False)).startswith("1 - cosine with the teacher's features 0.1000;")


def test_a_collapsed_codebook_is_named() -> None:
    assert quality().warning() is None
    collapsed = quality(used=2, perplexity=1.2).warning()
    assert collapsed is not None
    assert collapsed.startswith("the codebook has collapsed: 1000 tokens say no more than 1.2 equally frequent codes")
    sparse = quality(used=20, perplexity=15.0).warning()
    assert sparse == "only 20 of 100 codes are in use: a smaller --vocabulary would do"
    # More codes than tokens: not all of them can be in use.
    assert quality(vocabulary=8192, tokens=60, used=50, perplexity=45.0).warning() is None


def test_the_sheet_has_a_row_of_reconstructions_below_each_row_of_images(images: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer("vq")
    assert isinstance(tokenizer, PaintingTokenizer)
    picture = np.asarray(Image.open(io.BytesIO(sheet(tokenizer, images[:5], columns=3))))
    # Cells of 128 x 192 pixels, 8 times enlarged, 4 pixels apart.
    assert picture.shape == (4 * 128 + 8 + 4 * 4, 3 * 192 + 2 * 4, 3)
    shown = picture[:128, :192][4::8, 4::8]
    expected = (images[0].permute(1, 2, 0) * 255).round().numpy()
    np.testing.assert_allclose(shown, expected, atol=1)
    with torch.no_grad():
        painted = tokenizer.reconstruct(images[:5])
    below = picture[132:260, :192][4::8, 4::8]
    np.testing.assert_allclose(below, (painted[0].permute(1, 2, 0) * 255).round().numpy(), atol=1)
    # Where there is no sixth image, the sheet is white.
    assert (picture[-128:, -192:] == 255).all()
