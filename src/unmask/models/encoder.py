"""What every encoder is: images in, tokens out, whole or with some patches hidden.

Shape legend: B images, C channels, H x W pixels, N patches (row-major), P prefix tokens (class token, registers),
L tokens that come out (P + N, or P + visible), M masks (B, or a multiple), D width, h heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from unmask.models.encoder_config import EncoderConfig


class Encoder(nn.Module, ABC):
    """An encoder of images that methods train and evaluations judge; `build_encoder` makes one from a configuration."""

    mask_token: nn.Parameter | None

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config

    @property
    @abstractmethod
    def width(self) -> int:
        """Width D of the tokens."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of blocks (of the last stage, where there are several)."""

    @property
    @abstractmethod
    def prefix(self) -> int:
        """Number P of tokens before the patches: class token and registers."""

    @property
    @abstractmethod
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""

    @property
    @abstractmethod
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch, in pixels."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network without what only pre-training needs (mask token): what an encoder file holds."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The parts that make up most of the network and are only ever called whole, in the order in which they are."""

    @property
    @abstractmethod
    def timm_model(self) -> tuple[str, dict[str, Any]] | None:
        """Name and arguments by which `timm.create_model` alone builds `network`; None where timm has no such one."""

    @abstractmethod
    def set_image_size(self, height: int, width: int) -> None:
        """Take images of another size from now on. Both must be multiples of the patch size."""

    @abstractmethod
    def forward(
        self,
        images_BCHW: Float[Tensor, "B C H W"],
        *,
        drop_BN: Bool[Tensor, "M N"] | None = None,
        replace_BN: Bool[Tensor, "B N"] | None = None,
        hidden: int | None = None,
    ) -> Float[Tensor, "_ L D"]:
        """Tokens after the final norm, prefix tokens first.

        drop_BN: hidden patches are left out (MAE); every sample must hide the same number; L = P + visible, in
        row-major order. K x B masks give K x B results: every image is embedded once and seen through K masks, image b
        through those at b, b + B, b + 2B ... (ExtreMA). replace_BN: hidden patches enter as the learnt mask token,
        before positions are added (BEiT, SimMIM, ConMIM); L = P + N. Neither: all patches. hidden: how many patches
        every mask hides, where the caller knows it: it is trusted, and the device is not waited for. Absolute positions
        follow images of another size by interpolation; relative ones need `set_image_size` first.
        """

    @abstractmethod
    def remove_norm(self) -> None:
        """Take the final norm away (targets of CMAE have none)."""

    @abstractmethod
    def attention(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h N"]:
        """For each head of the last block, how much the class token (or, without one, the mean patch) attends to each
        patch; a picture for people, not part of any loss. ValueError where the encoder has no attention."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]

    def patches(self, tokens_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B N D"]:
        """The patch tokens among `tokens_BLD`."""
        return tokens_BLD[:, self.prefix :]

    def pool(
        self, tokens_BLD: Float[Tensor, "B L D"], pooling: Literal["mean", "class"] = "mean"
    ) -> Float[Tensor, "B D"]:
        """One feature an image: mean of the patch tokens, or the class token."""
        if pooling == "mean":
            return self.patches(tokens_BLD).mean(dim=1)
        if not self.has_class_token:
            raise ValueError("this encoder has no class token; pool by mean")
        return tokens_BLD[:, 0]
