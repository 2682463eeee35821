"""CAE's latent regressor and decoder: from the latents of visible patches to those of hidden ones, and on to outputs.

Shape legend: B samples, N patches (row-major), V visible and M hidden patches of a sample, D width, E output width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import DropPath, LayerNorm, Mlp
from timm.models.beit import Block
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.models.initialise import small_linears_
from unmask.models.positions import sincos_positions


@dataclass(frozen=True, kw_only=True)
class RegressorConfig:
    """Sizes of CAE's latent regressor and decoder; both have one width."""

    width: Annotated[int | None, Doc("Width of the latents; None: the encoder's. [code]")] = None
    regressor_depth: Annotated[int, Doc("Cross-attention blocks of the regressor. [README]")] = 4
    regressor_heads: Annotated[int | None, Doc("Attention heads of the regressor; None: the encoder's. [code]")] = None
    decoder_depth: Annotated[int, Doc("Blocks of the decoder. [README]")] = 4
    decoder_heads: Annotated[int | None, Doc("Attention heads of the decoder; None: the encoder's. [code]")] = None
    mlp_ratio: Annotated[float, Doc("Hidden width of a block's MLP by its width.")] = 4.0
    layer_scale: Annotated[float, Doc("Initial value of layer scale; 0 switches it off. [README: 0.1]")] = 0.1

    def __post_init__(self) -> None:
        for what, value in (
            ("width", self.width),
            ("depth", self.regressor_depth),
            ("heads", self.regressor_heads),
            ("decoder depth", self.decoder_depth),
            ("decoder heads", self.decoder_heads),
        ):
            if value is not None and value < 1:
                raise ValueError(f"regressor {what} must be at least 1, got {value}")
        for heads in (self.regressor_heads, self.decoder_heads):
            if self.width is not None and heads is not None and self.width % heads:
                raise ValueError(f"regressor width {self.width} is not divisible by its {heads} heads")
        if self.layer_scale < 0:
            raise ValueError(f"layer scale must be 0 or more, got {self.layer_scale}")


class RegressorBlock(nn.Module):
    """Hidden queries read visible latents and each other.

    Authors' behaviour: keys have no bias; queries, keys and values have a norm each, and positions are added before the
    first two; the MLP's residual starts from the normalised tokens, so what comes before is not carried on as it was.
    """

    def __init__(self, width: int, heads: int, *, mlp_ratio: float, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k, self.norm_v = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.norm = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        # Without layer scale the authors keep the factors, fixed at one.
        start_D = torch.full((width,), layer_scale or 1.0)
        self.gamma_1 = nn.Parameter(start_D.clone(), requires_grad=layer_scale > 0)
        self.gamma_2 = nn.Parameter(start_D.clone(), requires_grad=layer_scale > 0)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self,
        queries_BMD: Float[Tensor, "B M D"],
        memory_BND: Float[Tensor, "B N D"],
        query_position_BMD: Float[Tensor, "B M D"],
        memory_position_BND: Float[Tensor, "B N D"],
    ) -> Float[Tensor, "B M D"]:
        """New queries. The memory has its positions in `memory_position_BND`; its values have none."""
        q = self._split(self.q(self.norm_q(queries_BMD + query_position_BMD)))
        k = self._split(self.k(self.norm_k(memory_BND + memory_position_BND)))
        v = self._split(self.v(self.norm_v(memory_BND)))
        read_BMD = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        tokens_BMD = self.norm(queries_BMD + self.drop_path(self.gamma_1 * read_BMD))
        return tokens_BMD + self.drop_path(self.gamma_2 * self.mlp(tokens_BMD))

    def _split(self, tokens_BLD: Tensor) -> Tensor:
        return tokens_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LatentRegressor(nn.Module):
    """Latents of hidden patches from latents of visible ones, and outputs from those latents alone.

    The decoder never sees a visible patch: whatever it is to know must be in the regressed latents.
    """

    def __init__(
        self,
        config: RegressorConfig,
        *,
        width: int,
        heads: int,
        drop_path: float,
        out_width: int,
        grid: tuple[int, int],
    ) -> None:
        """`width` and `heads` are the encoder's, which `config` may change; `drop_path`: of the last block of each."""
        super().__init__()
        width = config.width or width
        heads_of = {"regressor": config.regressor_heads or heads, "decoder": config.decoder_heads or heads}
        for what, value in heads_of.items():
            if width % value:
                raise ValueError(f"the {what}'s width {width} is not divisible by its {value} heads")
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.position: Tensor
        self.register_buffer("position", sincos_positions(grid, width, prefix=0))
        self.blocks = nn.ModuleList(
            RegressorBlock(
                width,
                heads_of["regressor"],
                mlp_ratio=config.mlp_ratio,
                layer_scale=config.layer_scale,
                drop_path=rate,
            )
            for rate in _rising(drop_path, config.regressor_depth)
        )
        self.norm = LayerNorm(width)
        self.decoder = nn.ModuleList(
            Block(
                width,
                heads_of["decoder"],
                qkv_bias=True,
                mlp_ratio=config.mlp_ratio,
                drop_path=rate,
                init_values=config.layer_scale or None,
            )
            for rate in _rising(drop_path, config.decoder_depth)
        )
        self.decoder_norm = LayerNorm(width)
        self.head = nn.Linear(width, out_width)
        self._initialise()

    def _initialise(self) -> None:
        """As BEiT: small weights, and the output of block l divided by sqrt(2 l)."""
        small_linears_(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        with torch.no_grad():
            for blocks in (self.blocks, self.decoder):
                for name, weight in blocks.named_parameters():
                    if name.endswith(("proj.weight", "fc2.weight")):
                        position = int(name.partition(".")[0])
                        weight.div_(math.sqrt(2.0 * (position + 1)))

    def forward(self, visible_BVD: Float[Tensor, "B V D"], mask_BN: Bool[Tensor, "B N"]) -> Float[Tensor, "B M D"]:
        """Latents of the hidden patches, in row-major order.

        `visible_BVD`: latents of the visible patches in row-major order, without prefix tokens; all samples hide
        equally many.
        """
        positions_BND = self.position.to(visible_BVD).expand(len(mask_BN), -1, -1)
        of_hidden = positions_BND[mask_BN].unflatten(0, (len(mask_BN), -1))
        of_memory = torch.cat([positions_BND[~mask_BN].unflatten(0, (len(mask_BN), -1)), of_hidden], dim=1)
        hidden = self.mask_token.to(visible_BVD.dtype).expand(*of_hidden.shape[:2], -1)
        for block in self.blocks:
            hidden = block(hidden, torch.cat([visible_BVD, hidden], dim=1), of_hidden, of_memory)
        return self.norm(hidden)

    def decode(self, latents_BMD: Float[Tensor, "B M D"], mask_BN: Bool[Tensor, "B N"]) -> Float[Tensor, "B M E"]:
        """Outputs of the hidden patches from their regressed latents."""
        positions_BND = self.position.to(latents_BMD).expand(len(mask_BN), -1, -1)
        tokens = latents_BMD + positions_BND[mask_BN].view_as(latents_BMD)
        for block in self.decoder:
            tokens = block(tokens)
        return self.head(self.decoder_norm(tokens))


def _rising(last: float, depth: int) -> list[float]:
    return [last * position / max(1, depth - 1) for position in range(depth)]
