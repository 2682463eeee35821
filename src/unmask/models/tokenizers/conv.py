"""DALL-E's convolutional encoder and decoder, in any size: groups of bottleneck blocks between poolings.

Names and shapes of the encoder are those of OpenAI's released one (their `w` and `b` are `weight` and `bias` here), so
that its weights fit; stride is 2 to the power of the groups minus one.

Shape legend: B images, C channels, H x W pixels, E channels on the token side, h x w tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Doc

MOST_STRIDE, MOST_BLOCKS = 1 << 16, 100
"""A file of others may ask for more, which would take long before the first weight is looked at."""
WIDEST = 8  # groups double in width up to this factor, which DALL-E's fourth and last group has


@dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """Size of a convolutional encoder and of the decoder that mirrors it."""

    stride: Annotated[
        int, Doc("Side of the square of pixels that one token stands for; a power of two. [8 in DALL-E]")
    ] = 8
    width: Annotated[int, Doc("Channels of the first group; a multiple of 4. [256 in DALL-E]")] = 64
    blocks: Annotated[int, Doc("Bottleneck blocks of each group. [2 in DALL-E]")] = 2

    def __post_init__(self) -> None:
        if self.stride < 1 or self.stride & (self.stride - 1):
            raise ValueError(f"the tokenizer's stride must be a power of two, got {self.stride}")
        if self.stride > MOST_STRIDE or self.blocks > MOST_BLOCKS:
            raise ValueError(f"a tokenizer has at most a stride of {MOST_STRIDE} and {MOST_BLOCKS} blocks a group")
        if self.width < 4 or self.width % 4:
            raise ValueError(f"the tokenizer's width must be a multiple of 4, got {self.width}")
        if self.blocks < 1:
            raise ValueError(f"each group needs at least 1 block, got {self.blocks}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each group, from the pixels on."""
        groups = self.stride.bit_length()
        return tuple(self.width * min(2**group, WIDEST) for group in range(groups))


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, with DALL-E's start: variance 1 / fan-in, zero bias."""
    made = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.normal_(made.weight, std=(inputs * kernel**2) ** -0.5)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made


class Bottleneck(nn.Module):
    """x + gain * (four convolutions of x at a quarter of the width), with kernels of these sizes."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, int, int, int], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        hidden = outputs // 4
        sizes = ((inputs, hidden), (hidden, hidden), (hidden, hidden), (hidden, outputs))
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for number, ((before, after), kernel) in enumerate(zip(sizes, kernels, strict=True), start=1):
            path[f"relu_{number}"] = nn.ReLU()
            path[f"conv_{number}"] = convolution(before, after, kernel)
        self.res_path = nn.Sequential(path)

    def forward(self, features_BDHW: Tensor) -> Tensor:
        """The features with the path's share added."""
        return self.id_path(features_BDHW) + self.gain * self.res_path(features_BDHW)


class ConvEncoder(nn.Module):
    """Images to `outputs` channels at each token: a 7x7 convolution, groups with max-pooling between, a 1x1."""

    def __init__(self, config: ConvConfig, *, channels: int, outputs: int) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict(input=convolution(channels, config.width, 7))
        gain = (len(config.widths) * config.blocks) ** -2.0
        before = config.width
        for number, width in enumerate(config.widths, start=1):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(1, config.blocks + 1):
                group[f"block_{block}"] = Bottleneck(before, width, (3, 3, 3, 1), gain)
                before = width
            if number < len(config.widths):
                group["pool"] = nn.MaxPool2d(2)
            parts[f"group_{number}"] = nn.Sequential(group)
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=convolution(before, outputs, 1)))
        self.blocks = nn.Sequential(parts)

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        """What the images are at each token."""
        return self.blocks(images_BCHW)


class ConvDecoder(nn.Module):
    """The way back: a 1x1 convolution, groups with nearest-neighbour doubling between, a 1x1."""

    def __init__(self, config: ConvConfig, *, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = config.widths[::-1]
        gain = (len(widths) * config.blocks) ** -2.0
        # DALL-E's 8192 codes become 128 channels before the first block, half its width.
        before = max(4, config.width // 2)
        parts: OrderedDict[str, nn.Module] = OrderedDict(input=convolution(inputs, before, 1))
        for number, width in enumerate(widths, start=1):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(1, config.blocks + 1):
                group[f"block_{block}"] = Bottleneck(before, width, (1, 3, 3, 3), gain)
                before = width
            if number < len(widths):
                group["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
            parts[f"group_{number}"] = nn.Sequential(group)
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=convolution(before, outputs, 1)))
        self.blocks = nn.Sequential(parts)

    def forward(self, tokens_BEhw: Float[Tensor, "B E h w"]) -> Float[Tensor, "B K H W"]:
        """What the tokens look like, in pixels."""
        return self.blocks(tokens_BEhw)


def rows_of(map_BEhw: Float[Tensor, "B E h w"]) -> Float[Tensor, "B n E"]:
    """A map as a list of tokens, row by row."""
    return map_BEhw.flatten(2).transpose(1, 2)


def map_of(rows_BnE: Float[Tensor, "B n E"], grid: tuple[int, int]) -> Float[Tensor, "B E h w"]:
    """A list of tokens as a map of this many rows and columns."""
    return rows_BnE.transpose(1, 2).unflatten(2, grid)


PIXEL_MARGIN = 0.1


def map_pixels(images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """[0, 1] to [0.1, 0.9]: DALL-E's values, whose logits are finite."""
    return (1 - 2 * PIXEL_MARGIN) * images_BCHW + PIXEL_MARGIN


def unmap_pixels(values_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The way back, clamped to [0, 1]."""
    return torch.clamp((values_BCHW - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN), 0, 1)
