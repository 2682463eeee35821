"""Four maps of features out of an encoder that has one resolution, as BEiT feeds UperNet.

The maps have 4, 2, 1 and 1/2 places along each side of a patch: strides 4, 8, 16 and 32 for patches of 16 pixels. A
ViT gives the raw outputs of the blocks that end a third, half, two thirds and all of its depth: 3, 5, 7 and 11 of 12,
7, 11, 15 and 23 of 24 (counted from 0), as in BEiT's configurations. Of any other encoder all four maps are made of the
final patch tokens.

Where BEiT's code differs: for patches of 8 pixels it keeps the strides 4, 8, 16 and 32; here the maps follow the grid
of patches whatever its size, so that small images get fine maps. Of an odd number of rows or columns the coarsest map
keeps the last one, which BEiT's drops.

Shape legend: B images, C channels, H x W pixels, D width, r x c rows and columns of patches, L tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.models.encoder import Encoder
from unmask.models.vit import VitEncoder

_DEPTHS = (4, 6, 8, 12)  # of twelve


def pyramid_blocks(depth: int) -> tuple[int, int, int, int]:
    """The blocks (0 is the first) of a ViT of `depth` blocks whose outputs become maps: the nearest to a third, half,
    two thirds and all of the depth. Shallow networks give some block twice."""
    first, second, third, last = (max(1, (depth * twelfths + 6) // 12) - 1 for twelfths in _DEPTHS)
    return first, second, third, last


class BlockPyramid(nn.Module):
    """An encoder and the layers that make four maps of its features.

    A frozen encoder takes no gradient and stays in eval mode, whatever mode the module around it is in; the layers
    after it learn. A ViT's final norm has no part in the maps, so it does not learn either.
    """

    def __init__(self, encoder: Encoder, *, frozen: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.frozen = frozen
        D = encoder.width
        self.widths = (D, D, D, D)
        self.fourfold = nn.Sequential(
            nn.ConvTranspose2d(D, D, kernel_size=2, stride=2),
            nn.BatchNorm2d(D),
            nn.GELU(),
            nn.ConvTranspose2d(D, D, kernel_size=2, stride=2),
        )
        self.twofold = nn.ConvTranspose2d(D, D, kernel_size=2, stride=2)
        self.pooled = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)
        if frozen:
            encoder.requires_grad_(False).eval()
        elif isinstance(encoder, VitEncoder):
            encoder.vit.norm.requires_grad_(False)

    def forward(
        self, images_BCHW: Float[Tensor, "B C H W"]
    ) -> tuple[
        Float[Tensor, "B D r4 c4"], Float[Tensor, "B D r2 c2"], Float[Tensor, "B D r c"], Float[Tensor, "B D r1 c1"]
    ]:
        """The maps of normalised images, finest first.

        ValueError where the sides are no multiples of the patch, or the encoder's positions do not follow this size:
        a crop or a window of the encoder's own size always fits.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            first, second, third, last = self._features(images_BCHW)
        return self.fourfold(first), self.twofold(second), third, self.pooled(last)

    def _features(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patch tokens as maps [B, D, r, c]."""
        encoder = self.encoder
        if isinstance(encoder, VitEncoder):
            tokens = encoder.block_outputs(images_BCHW, pyramid_blocks(encoder.depth))
        else:
            tokens = (encoder(images_BCHW),) * 4
        height, width = images_BCHW.shape[2:]
        grid = (height // encoder.patch[0], width // encoder.patch[1])
        first, second, third, last = (
            encoder.patches(tokens_BLD).transpose(1, 2).unflatten(2, grid).contiguous() for tokens_BLD in tokens
        )
        return first, second, third, last

    def train(self, mode: bool = True) -> BlockPyramid:
        """As for every module, but a frozen encoder stays in eval mode: no drop path, no moving batch norm."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self
