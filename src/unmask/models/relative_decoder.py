"""SIM's decoder: from the visible tokens of one view, the features of another view whose place is known.

Shape legend: B samples, N patches (row-major), L visible tokens with P prefix tokens first, T all tokens of the batch,
W encoder width, D decoder width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from unmask.masking import visible_indices
from unmask.models.batch_norm import RankBatchNorm
from unmask.models.decoder import DecoderConfig
from unmask.models.initialise import xavier_linears_
from unmask.models.positions import sincos_positions


class TokenBatchNorm(nn.Module):
    """Batch norm of tokens [B, L, D]: statistics over all tokens of all samples, and of all ranks."""

    def __init__(self, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.bn = RankBatchNorm(width, device=device, dtype=dtype)

    def forward(self, tokens_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The normalised tokens."""
        return self.bn(tokens_BLD.flatten(0, 1)).view_as(tokens_BLD)


def _blocks(config: DecoderConfig, depth: int, *, batch_norm: bool) -> nn.Sequential:
    norm: type[nn.Module] = TokenBatchNorm if batch_norm else LayerNorm
    return nn.Sequential(
        *[
            Block(config.width, config.heads, mlp_ratio=config.mlp_ratio, qkv_bias=True, norm_layer=norm)
            for _ in range(depth)
        ]
    )


class TokenProjector(nn.Module):
    """Linear map to the decoder's width and a few blocks, without positions; the target network has it too."""

    def __init__(self, config: DecoderConfig, *, encoder_width: int, depth: int, batch_norm: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, config.width)
        self.blocks = _blocks(config, depth, batch_norm=batch_norm)
        xavier_linears_(self)

    def forward(self, tokens_BLW: Float[Tensor, "B L W"]) -> Float[Tensor, "B L D"]:
        """Projected tokens."""
        return self.blocks(self.embed(tokens_BLW))


class RelativePredictor(nn.Module):
    """Visible tokens at their own positions, and a mask token for every patch of the other view at its position
    relative to this view; blocks; linear. What comes out at the mask tokens is the prediction."""

    def __init__(self, config: DecoderConfig, *, grid: tuple[int, int], prefix: int, batch_norm: bool) -> None:
        super().__init__()
        self.grid = grid
        self.prefix = prefix
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.position: Tensor
        self.register_buffer("position", sincos_positions(grid, config.width, prefix=prefix))
        self.relative = nn.Linear(2 * config.width, config.width)
        self.blocks = _blocks(config, config.depth, batch_norm=batch_norm)
        self.head = nn.Linear(config.width, config.width)
        xavier_linears_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        visible_BLD: Float[Tensor, "B L D"],
        mask_BN: Bool[Tensor, "B N"],
        relative_B6: Float[Tensor, "B 6"],
    ) -> Float[Tensor, "B N D"]:
        """Predicted features of all N patches of the other view.

        `visible_BLD`: prefix tokens, then the patches that `mask_BN` leaves visible, in row-major order. `relative_B6`:
        where the other view lies, see `relative_embedding`.
        """
        prefix_PD, patches_ND = self.position[0].split([self.prefix, mask_BN.shape[1]])
        position_BLD = torch.cat(
            [prefix_PD.expand(len(mask_BN), -1, -1), patches_ND[visible_indices(mask_BN)]], dim=1
        ).to(visible_BLD.dtype)
        wanted_BND = self.mask_token + self.relative(relative_embedding(relative_B6, self.grid, self.position.shape[2]))
        tokens = torch.cat([visible_BLD + position_BLD, wanted_BND.to(visible_BLD.dtype)], dim=1)
        return self.head(self.blocks(tokens)[:, -mask_BN.shape[1] :])


def relative_embedding(
    relative_B6: Float[Tensor, "B 6"], grid: tuple[int, int], width: int
) -> Float[Tensor, "B N {2*width}"]:
    """Sine-cosine code of where each patch of the second view lies in the first view, in patches of the first.

    Columns of `relative_B6`: offset down and offset right of the second crop by the first crop's height and width;
    its height and its width by the first's; 1 where one of the two is mirrored and the other is not; and the offset
    right that counts where it is mirrored (all as `relative_position` in SIM's method has them). Four equal parts: row,
    column, ten times the logarithm of either scale; each first sines, then cosines. `width` must be divisible by 4.
    """
    if width % 4:
        raise ValueError(f"relative positions need a width divisible by 4, got {width}")
    down, right, height, wide, mirrored, mirrored_right = relative_B6[:, :, None].unbind(dim=1)
    middles = [torch.arange(size, dtype=relative_B6.dtype, device=relative_B6.device) + 0.5 for size in grid]
    rows_BR = height * middles[0] + down * grid[0] - 0.5
    columns_BC = torch.where(
        mirrored > 0.5,
        mirrored_right * grid[1] - wide * middles[1] - 0.5,
        wide * middles[1] + right * grid[1] - 0.5,
    )
    rows_BN = rows_BR.repeat_interleave(grid[1], dim=1)
    columns_BN = columns_BC.repeat(1, grid[0])
    scales = [10 * scale.log().expand_as(rows_BN) for scale in (height, wide)]
    quarter = width // 4
    frequencies = 10000 ** (-torch.arange(quarter, dtype=relative_B6.dtype, device=relative_B6.device) / quarter)
    angles_BN4Q = torch.stack([rows_BN, columns_BN, *scales], dim=2)[..., None] * frequencies
    return torch.stack([angles_BN4Q.sin(), angles_BN4Q.cos()], dim=3).flatten(2)
