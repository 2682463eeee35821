"""What a step computes, counted: floating-point operations by the formulas of docs/speed.md, and tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unmask.data.batch import Batch
from unmask.methods import find_method
from unmask.methods.base import Method
from unmask.methods.cmae import CMAE
from unmask.methods.conmim import ConMIM
from unmask.methods.mae import MAE
from unmask.views import Views

BATCH = 4


def linear(tokens: float, wide: int, out: int, times: int = 3) -> float:
    """A linear layer: forward, and gradients of weights and of inputs (`times` 2: no gradient of inputs; 1: none)."""
    return 2 * tokens * wide * out * times


def attention(queries: int, keys: int, width: int, times: int = 3) -> float:
    """Both products of attention over all heads."""
    return 4 * queries * keys * width * times


def block(tokens: int, width: int, times: int = 3) -> float:
    """Queries, keys, values, projection and an MLP four times as wide: 12 width^2 a token."""
    return linear(tokens, width, 12 * width, times) + attention(tokens, tokens, width, times)


def encoder(tokens: int, embedded: int, width: int, depth: int, pixels: int, times: int = 3) -> float:
    """Patches that are embedded, and all blocks."""
    return linear(embedded, pixels, width, min(times, 2)) + depth * block(tokens, width, times)


def decoder(visible: int, patches: int, wide: int, width: int, depth: int, places: int) -> float:
    """Embedding; a first block that shares the mask tokens' keys; a last block for `places` of the tokens."""
    tokens, shared = patches + 1, patches / BATCH
    first = linear(visible + 1 + shared, width, 3 * width) + linear(tokens, width, 9 * width)
    first += attention(tokens, tokens, width)
    last = linear(tokens, width, 2 * width) + linear(places, width, 10 * width) + attention(places, tokens, width)
    return linear(visible + 1, wide, width) + first + (depth - 2) * block(tokens, width) + last


def expected(method: Method[Any]) -> float:
    """Operations of an image by the formulas of docs/speed.md."""
    sizes = method.encoder
    assert isinstance(method, MAE | CMAE | ConMIM)
    patches, width, depth = sizes.grid[0] * sizes.grid[1], sizes.width, sizes.depth
    pixels = sizes.patch[0] * sizes.patch[1] * 3
    if isinstance(method, ConMIM):
        hidden, tokens, head = 37 * 4, patches + 1, method.config.projector
        online = encoder(tokens, patches - hidden, width, depth, pixels)
        target = encoder(tokens, patches, width, depth, pixels, times=1)
        projector = linear(tokens, width, head.hidden, 4) + linear(tokens, head.hidden, head.hidden, 4)
        projector += linear(tokens, head.hidden, head.out, 4)
        return online + target + projector + linear(hidden, head.out, patches, 2)
    if isinstance(method, MAE):
        visible, config = patches // 4, method.config.decoder
        inner = decoder(visible, patches, width, config.width, config.depth, patches - visible)
        painted = linear(patches - visible, config.width, pixels)
        return encoder(visible + 1, visible, width, depth, pixels) + inner + painted
    visible, config = patches - 32 * 4, method.config.pixel_decoder
    inner = decoder(visible, patches, width, config.width, config.depth, patches - visible)
    painted = linear(patches - visible, config.width, pixels)
    features = decoder(visible, patches, width, method.config.feature_decoder.width, 2, patches + 1)
    target = encoder(patches + 1, patches, width, depth, pixels, times=1)
    return encoder(visible + 1, visible, width, depth, pixels) + inner + painted + features + target


def on_meta(name: str) -> tuple[Method[Any], Views]:
    """A ViT-B/16 of a method and the views of a batch, without memory: whoever reads a value there fails."""
    cls = find_method(name)
    method = cls(cls.Config())
    (crop,) = method.crops
    views = method.make_views(Batch.of(torch.zeros(BATCH, 3, crop.height, crop.width, dtype=torch.uint8), seed=0))
    moved = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in vars(views).items()}
    return method.to("meta"), replace(views, **moved)


@pytest.mark.parametrize("name", ["mae", "cmae", "conmim"])
def test_a_step_costs_what_the_documentation_says(name: str) -> None:
    with torch.device("cpu"):
        method, views = on_meta(name)
    with FlopCounterMode(display=False) as counter:
        torch.stack(list(method.losses(views).values())).sum().backward()
    assert counter.get_total_flops() / BATCH == pytest.approx(expected(method), rel=0.01)


@pytest.mark.parametrize(("name", "tokens"), [("mae", 50), ("cmae", 69), ("conmim", 197), ("simmim", 197)])
def test_the_online_encoder_sees_no_more_tokens_than_it_must(name: str, tokens: int) -> None:
    method, views = on_meta(name)
    seen: list[int] = []
    block: Any = method.encoder
    block.vit.blocks[0].mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    method.losses(views)
    assert seen == [tokens]
