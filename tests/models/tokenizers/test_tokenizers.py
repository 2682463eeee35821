"""What holds for tokenizers of every kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_tokenizers import CODES, tiny_teacher, tiny_tokenizer
from unmask.data.loader import EvalLoader
from unmask.data.sources import open_source
from unmask.models.tokenizers.base import Lesson, PaintingTokenizer, TokenizerConfig


def lesson(seed: int = 0, progress: float = 0.5, channels: int = 3) -> Lesson:
    return Lesson(progress, torch.Generator().manual_seed(seed), tiny_teacher(channels))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tokens_are_codes_row_by_row_for_any_grid_and_channels(kind: str, channels: int) -> None:
    tokenizer = tiny_tokenizer(kind, channels)
    assert (tokenizer.vocabulary, tokenizer.stride, tokenizer.channels) == (CODES, 8, channels)
    images = torch.rand(2, channels, 50, 37)
    for grid in ((4, 5), (1, 3), (6, 2)):
        ids = tokenizer.tokens_for(images, grid)
        logits = tokenizer.logits_for(images, grid)
        assert ids.shape == (2, grid[0] * grid[1])
        assert logits.shape == (*ids.shape, CODES)
        assert torch.equal(logits.argmax(dim=-1), ids)
        assert 0 <= int(ids.min()) <= int(ids.max()) < CODES
        assert not logits.requires_grad


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), height=st.integers(5, 70), width=st.integers(5, 70))
def test_images_are_resized_so_that_the_grids_agree(rows: int, columns: int, height: int, width: int) -> None:
    tokenizer = tiny_tokenizer("dvae", 1)
    images = torch.rand(2, 1, height, width)
    resized = tokenizer.resized(images, (rows, columns))
    assert resized.shape == (2, 1, 8 * rows, 8 * columns)
    assert 0 <= float(resized.min()) <= float(resized.max()) <= 1
    assert tokenizer.tokens_for(images, (rows, columns)).shape == (2, rows * columns)


def test_images_of_the_right_size_are_left_as_they_are(kind: str, images: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer(kind)
    assert tokenizer.resized(images, (4, 5)) is images
    assert torch.equal(tokenizer.tokens_for(images, (4, 5)), tokenizer.ids(images))


def test_a_token_belongs_to_its_place() -> None:
    """What changes on the left of an image changes the tokens there most, and none far away on the right."""
    tokenizer = tiny_tokenizer("dvae")
    images = torch.rand(2, 3, 8, 160, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[..., :8] = 1 - changed[..., :8]
    difference_n = (tokenizer.logits(images) - tokenizer.logits(changed)).abs().amax(dim=(0, 2))
    assert difference_n[0] == difference_n.max() > 0
    assert not difference_n[10:].any()


def test_tokens_depend_on_nothing_but_the_image(kind: str, images: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer(kind)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    expected = tokenizer.logits(images)
    assert torch.equal(tokenizer.train().logits(images), tokenizer.eval().logits(images))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.logits(images), expected)
    assert torch.allclose(tokenizer.logits(images[1:2]), expected[1:2], atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    double = tokenizer.double().logits(images.double())
    assert double.dtype == torch.float64
    assert torch.allclose(double, expected.double(), rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_first_and_the_last_layer(kind: str, images: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer(kind)
    losses = tokenizer.losses(images, lesson())
    torch.stack(list(losses.values())).sum().backward()
    silent = [name for name, value in tokenizer.named_parameters() if value.grad is None or not value.grad.any()]
    # No position of the class token and no class token of the last block is asked for.
    assert not silent
    # Decays what is a matrix.
    decayed = {name for name, value in tokenizer.named_parameters() if tokenizer.rule(name, value).decay}
    assert decayed
    assert not any(name.endswith(("bias", "cls_token", "pos_embed")) for name in decayed)


def test_a_training_step_follows_from_its_seed(kind: str, images: torch.Tensor) -> None:
    first, again = (tiny_tokenizer(kind) for _ in range(2))
    torch.manual_seed(1)
    losses = first.losses(images, lesson())
    torch.manual_seed(2)
    repeated = again.losses(images, lesson())
    assert losses.keys() == repeated.keys()
    assert all(torch.equal(losses[name], repeated[name]) for name in losses)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())


def test_reconstructions_are_images(images: torch.Tensor) -> None:
    for kind in ("dvae", "vq"):
        tokenizer = tiny_tokenizer(kind)
        assert isinstance(tokenizer, PaintingTokenizer)
        painted = tokenizer.reconstruct(images)
        assert painted.shape == images.shape
        assert 0 <= painted.min().item() <= painted.max().item() <= 1


def test_the_loss_falls_on_real_images(kind: str) -> None:
    source = open_source("builtin:emoji").subset(range(0, 64 * 40, 40))
    (pixels, _) = next(iter(EvalLoader(source, height=16, width=24, batch_size=64, workers=0)))
    images = pixels.float() / 255
    tokenizer = tiny_tokenizer(kind)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    history = []
    for step in range(30):
        losses = tokenizer.losses(images, lesson(step, progress=1.0))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total))
    first, last = sum(history[:3]) / 3, sum(history[-3:]) / 3
    assert last < first - 0.1 * abs(first), history


@pytest.mark.parametrize(
    ("images", "grid", "sentence"),
    [
        (torch.rand(1, 1, 16, 16), None, "the tokenizer takes 3 channels, got images of 1"),
        (torch.rand(1, 3, 20, 16), None, "image size 20x16 is not divisible by the tokenizer's stride 8"),
        (torch.rand(1, 3, 0, 16), None, "image size 0x16 is not divisible by the tokenizer's stride 8"),
        (torch.rand(1, 3, 16, 16), (0, 2), "a grid needs at least one row and one column, got 0x2"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    kind: str, images: torch.Tensor, grid: tuple[int, int] | None, sentence: str
) -> None:
    tokenizer = tiny_tokenizer(kind)
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        tokenizer.ids(images) if grid is None else tokenizer.tokens_for(images, grid)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"vocabulary": 1}, "a vocabulary needs at least 2 codes, got 1"),
        ({"channels": 0}, "images need at least 1 channel, got 0"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        TokenizerConfig(**values)
