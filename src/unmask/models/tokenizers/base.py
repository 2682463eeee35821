"""What every image tokenizer is: images in, a grid of discrete tokens out.

Shape legend: B images, C channels, H x W pixels, n tokens (row-major), V codes of the vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.models.pretrained import PretrainedEncoder
from unmask.optimisation import ParameterRule

Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What all tokenizers' configurations share."""

    vocabulary: Annotated[int, Doc("Number of codes. [8192 in DALL-E, PeCo and BEiT v2]")] = 8192
    channels: Annotated[int, Doc("Channels of the images.")] = 3

    def __post_init__(self) -> None:
        if self.vocabulary < 2:
            raise ValueError(f"a vocabulary needs at least 2 codes, got {self.vocabulary}")
        if self.channels < 1:
            raise ValueError(f"images need at least 1 channel, got {self.channels}")


class Tokenizer(nn.Module, ABC):
    """A network that gives each stride x stride pixels of an image one of `vocabulary` codes.

    Tokens never depend on train or eval mode, nor on autocast: what is tokenized twice has the same tokens twice.
    """

    kind: ClassVar[str]
    config: TokenizerConfig

    @property
    def vocabulary(self) -> int:
        """Number V of codes."""
        return self.config.vocabulary

    @property
    def channels(self) -> int:
        """Number C of channels that images must have."""
        return self.config.channels

    @property
    @abstractmethod
    def stride(self) -> int:
        """Side of the square of pixels that one token stands for."""

    @abstractmethod
    def scores(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n V"]:
        """Logits of the codes, of images that fit, in the weights' type; call `logits`, which checks and casts."""

    @torch.no_grad()
    def logits(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n V"]:
        """Unnormalised log-probabilities of the codes at every place, for images with values in [0, 1].

        Softmax makes them probabilities; mc-BEiT divides by a temperature before. ValueError where the images' sides
        are no multiples of the stride, or their channels are not the tokenizer's.
        """
        _, channels, height, width = images_BCHW.shape
        if channels != self.channels:
            raise ValueError(f"the tokenizer takes {self.channels} channels, got images of {channels}")
        if height < self.stride or width < self.stride or height % self.stride or width % self.stride:
            raise ValueError(f"image size {height}x{width} is not divisible by the tokenizer's stride {self.stride}")
        weight = next(self.parameters())
        with torch.autocast(images_BCHW.device.type, enabled=False):
            return self.scores(images_BCHW.to(weight.dtype))

    def ids(self, images_BCHW: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B n"]:
        """The most probable code at every place, row by row, for images with values in [0, 1]."""
        return self.logits(images_BCHW).argmax(dim=-1)

    def tokens_for(self, images_BCHW: Float[Tensor, "B C H W"], grid: tuple[int, int]) -> Int64[Tensor, "B n"]:
        """One code for each patch of an encoder that sees `grid` (rows, columns) of patches in these images.

        `images_BCHW` are not normalised: values in [0, 1], of any size.
        """
        return self.ids(self.resized(images_BCHW, grid))

    def logits_for(self, images_BCHW: Float[Tensor, "B C H W"], grid: tuple[int, int]) -> Float[Tensor, "B n V"]:
        """Logits of all codes for each patch of an encoder, as `tokens_for` takes their largest."""
        return self.logits(self.resized(images_BCHW, grid))

    def resized(self, images_BCHW: Float[Tensor, "B C H W"], grid: tuple[int, int]) -> Float[Tensor, "B C h w"]:
        """The images at the size at which they have `grid` (rows, columns) of tokens.

        BEiT resizes the crop's own pixels by Pillow's Lanczos filter (224 to 112 pixels with stride 8); torch has the
        bicubic filter, antialiased, on any device.
        """
        rows, columns = grid
        if rows < 1 or columns < 1:
            raise ValueError(f"a grid needs at least one row and one column, got {rows}x{columns}")
        size = (rows * self.stride, columns * self.stride)
        if images_BCHW.shape[2:] == size:
            return images_BCHW
        # A cubic filter overshoots at edges.
        return F.interpolate(images_BCHW, size=size, mode="bicubic", antialias=True).clamp(0, 1)


@dataclass(frozen=True)
class Lesson:
    """What a training step knows beside its images.

    progress: share of all steps taken, in [0, 1]. generator: on the CPU; everything random is drawn from it. teacher:
    the frozen network whose features are imitated or compared, if the user gave one.
    """

    progress: float
    generator: torch.Generator
    teacher: PretrainedEncoder | None = None


class TrainableTokenizer(Tokenizer):
    """A tokenizer that can be trained here."""

    @abstractmethod
    def losses(self, images_BCHW: Float[Tensor, "B C H W"], lesson: Lesson) -> Losses:
        """Named, weighted losses of images in [0, 1]; what is minimised is their sum. A codebook moves here, too."""

    @abstractmethod
    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        """How the optimizer treats this trainable parameter."""


class PaintingTokenizer(TrainableTokenizer):
    """A tokenizer that can paint an image from its tokens."""

    @abstractmethod
    def decode(self, ids_Bn: Int64[Tensor, "B n"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1], stride pixels a token, from codes in `grid` (rows, columns); call it without gradients."""

    def reconstruct(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1] as they look after having been tokens; call it without gradients."""
        _, _, height, width = images_BCHW.shape
        return self.decode(self.ids(images_BCHW), (height // self.stride, width // self.stride))
