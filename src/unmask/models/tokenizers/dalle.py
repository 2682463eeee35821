"""OpenAI's released encoder of DALL-E, which is BEiT's tokenizer, from a plain file of its weights.

OpenAI's own file is a pickled module, which cannot be opened without running code from it: save its `state_dict()` with
torch.save, once, where its package is installed. Their encoder computes in half precision on a GPU, this one as its
weights are, so tokens at the border between two codes can differ from theirs.

Shape legend: B images, C channels, H x W pixels, n tokens, V codes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from unmask.models.model_file import filled
from unmask.models.tokenizers.base import Tokenizer, TokenizerConfig
from unmask.models.tokenizers.conv import ConvConfig, ConvEncoder, map_pixels, rows_of

MARK = "blocks.input.w"
MOST_GROUPS = 99  # what names say beyond is refused as that, without a power of two that fills the memory


@dataclass(frozen=True, kw_only=True)
class DalleConfig(TokenizerConfig):
    """Sizes of DALL-E's encoder."""

    conv: Annotated[ConvConfig, Doc("Size of the encoder. [DALL-E]")] = ConvConfig(stride=8, width=256, blocks=2)


class DalleEncoder(Tokenizer):
    """The encoder alone of a discrete VAE (Ramesh et al. 2021)."""

    kind: ClassVar[str] = "dalle"

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.config: DalleConfig = config
        self.encoder = ConvEncoder(config.conv, channels=config.channels, outputs=config.vocabulary)

    @property
    def stride(self) -> int:
        return self.config.conv.stride

    def scores(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n V"]:
        return rows_of(self.encoder(map_pixels(images_BCHW)))


def from_dalle(state: dict[str, Tensor]) -> DalleEncoder:
    """The encoder whose weights have OpenAI's names; its sizes are read from their shapes. ValueError, KeyError or
    RuntimeError where names or shapes are not those of such an encoder."""
    groups = {int(found[1]) for name in state if (found := re.match(r"blocks\.group_(\d+)\.", name))}
    blocks = {int(found[1]) for name in state if (found := re.match(r"blocks\.group_1\.block_(\d+)\.", name))}
    width, channels, _, _ = state[MARK].shape
    config = DalleConfig(
        vocabulary=len(state["blocks.output.conv.w"]),
        channels=channels,
        conv=ConvConfig(
            stride=2 ** (min(max(groups, default=0), MOST_GROUPS) - 1), width=width, blocks=max(blocks, default=0)
        ),
    )
    kinds = {"w": "weight", "b": "bias"}
    renamed = {}
    for name, value in state.items():
        owner, _, what = name.rpartition(".")
        renamed[f"{owner}.{kinds.get(what, what)}"] = value.float()
    return filled(lambda: DalleEncoder(config), lambda made: made.encoder.load_state_dict(renamed))
