"""ConvMAE's hybrid encoder: two stages of masked convolution blocks, then ViT blocks (Gao et al., arXiv 2205.03892).

A hidden patch is zero wherever a convolution could carry it to its neighbours, and all other layers look at one place
alone or at places of one patch. So nothing of a hidden patch ever reaches a visible one, and hidden patches are not
computed at all, in any stage: the stages hold the visible patches as tiles of places, and lay them out as a map for the
depthwise convolutions only.

Shape legend: B images, C channels, H x W pixels, N patches (row-major), M masks (B, or a multiple), V visible patches
(N without a mask), s x s places of a patch at a stage (4 x 4, 2 x 2), S x S those at the stage before it (or pixels),
D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.layers import DropPath, LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmask.errors import in_short
from unmask.masking import visible_indices
from unmask.models.attention import RecordAttention
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.initialise import xavier_linears_
from unmask.models.positions import sincos_positions

PREFIX = "convmae_"
SIDES = (4, 2)  # places along the side of a patch, at each stage of convolutions


@dataclass(frozen=True, kw_only=True)
class HybridSizes:
    """Sizes of a hybrid encoder; the last of each triple is that of the ViT blocks."""

    widths: tuple[int, int, int]
    depths: tuple[int, int, int] = (2, 2, 11)
    heads: int
    mlp_ratios: tuple[float, float, float] = (4.0, 4.0, 4.0)
    patch: int = 16


# base: the authors' code; small: their later FastConvMAE's; tiny: ours, as wide as a tiny ViT.
HYBRIDS = {
    "convmae_tiny_patch16": HybridSizes(widths=(64, 128, 192), heads=3),
    "convmae_small_patch16": HybridSizes(widths=(128, 256, 384), heads=6),
    "convmae_base_patch16": HybridSizes(widths=(256, 384, 768), heads=12),
}


def hybrid_sizes(config: EncoderConfig) -> HybridSizes:
    """The sizes that a configuration means. ValueError for an unknown name and for what a hybrid does not have.

    Stages follow a width of the ViT blocks that is set, in the name's proportions, unless they are set too.
    """
    name = config.name
    if name not in HYBRIDS:
        raise ValueError(f"there is no encoder named {in_short(name)}; ConvMAE's are {', '.join(HYBRIDS)}")
    refused = {
        f"position {config.position!r} (its own are sin-cos)": config.position not in ("native", "sincos"),
        "class token": config.class_token is True,
        "layer scale": bool(config.layer_scale),
    }
    for what, wrong in refused.items():
        if wrong:
            raise ValueError(f"{name!r} has no {what}")
    usual = HYBRIDS[name]
    width = config.width or usual.widths[2]
    first, second = (max(1, round(stage * width / usual.widths[2])) for stage in usual.widths[:2])
    ratio = config.mlp_ratio or usual.mlp_ratios[2]
    sizes = HybridSizes(
        widths=(*(config.stage_widths or (first, second)), width),
        depths=(*(config.stage_depths or usual.depths[:2]), config.depth or usual.depths[2]),
        heads=config.heads or usual.heads,
        mlp_ratios=(*(config.stage_mlp_ratios or (ratio, ratio)), ratio),
        patch=config.patch_size or usual.patch,
    )
    if sizes.patch % SIDES[0]:
        raise ValueError(f"the patch size of {name!r} must be a multiple of {SIDES[0]}, got {sizes.patch}")
    if width % sizes.heads:
        raise ValueError(f"encoder width {width} is not divisible by its {sizes.heads} heads")
    if width % 4:
        raise ValueError(f"the width of {name!r} must be divisible by 4 for its sin-cos positions, got {width}")
    return sizes


class _Layout:
    """Where tiles lie in the map of their image: all patches in order, or the visible ones of each mask."""

    def __init__(self, grid: tuple[int, int], visible_MV: Tensor | None) -> None:
        self.grid = grid
        self.rows: Tensor | None = None
        if visible_MV is not None:
            first_M1 = torch.arange(len(visible_MV), device=visible_MV.device)[:, None] * (grid[0] * grid[1])
            self.rows = (first_M1 + visible_MV).flatten()

    def spread(self, tiles_MVssD: Tensor) -> Tensor:
        """The map [M, D, rows * s, columns * s] of tiles, zero where patches are hidden."""
        M, _, side, _, width = tiles_MVssD.shape
        rows, columns = self.grid
        tiles = tiles_MVssD
        if self.rows is not None:
            empty = tiles.new_zeros(M * rows * columns, side, side, width)
            tiles = empty.index_copy(0, self.rows, tiles.flatten(0, 1))
        nested = tiles.reshape(M, rows, columns, side, side, width)
        return nested.transpose(2, 3).reshape(M, rows * side, columns * side, width).permute(0, 3, 1, 2)

    def collect(self, map_MDHW: Tensor, tiles_like: Tensor) -> Tensor:
        """The inverse of `spread`, for tiles of the shape of `tiles_like`."""
        side, (rows, columns) = tiles_like.shape[2], self.grid
        nested = map_MDHW.permute(0, 2, 3, 1).reshape(map_MDHW.shape[0], rows, side, columns, side, -1)
        tiles = nested.transpose(2, 3).reshape(-1, side, side, map_MDHW.shape[1])
        if self.rows is not None:
            tiles = tiles.index_select(0, self.rows)
        return tiles.reshape(tiles_like.shape)


class _Embed(nn.Module):
    """A convolution with as large a stride as its kernel, written as a linear layer; norm; GELU."""

    def __init__(self, stride: int, width: int, out: int) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Linear(stride * stride * width, out)  # row, column, channel
        self.norm = nn.LayerNorm(out)
        self.act = nn.GELU()

    def forward(self, tiles_MVSSC: Tensor) -> Tensor:
        side, stride = tiles_MVSSC.shape[2] // self.stride, self.stride
        nested = tiles_MVSSC.unflatten(3, (side, stride)).unflatten(2, (side, stride))
        pieces = nested.transpose(3, 4).flatten(4)
        return self.act(self.norm(self.proj(pieces)))


class _ConvBlock(nn.Module):
    """norm, 1 x 1, masked depthwise 5 x 5, 1 x 1; norm, MLP; both residual. Linear layers stand for 1 x 1."""

    def __init__(self, width: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.conv1 = nn.Linear(width, width)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.conv2 = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop_path = DropPath(drop_path)

    def forward(self, tiles: Tensor, layout: _Layout) -> Tensor:
        mixed = layout.collect(self.attn(layout.spread(self.conv1(self.norm1(tiles)))), tiles)
        tiles = tiles + self.drop_path(self.conv2(mixed))
        return tiles + self.drop_path(self.mlp(self.norm2(tiles)))


class _Stage(nn.Module):
    """Embedding and convolution blocks of one resolution, and what they add to the last tokens."""

    def __init__(self, embed: _Embed, blocks: list[_ConvBlock], fuse: nn.Linear) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.fuse = fuse


class HybridNetwork(nn.Module):
    """The layers; `HybridEncoder` feeds them."""

    def __init__(self, sizes: HybridSizes, *, channels: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__()
        widths, width = sizes.widths, sizes.widths[2]
        rates = iter([drop_path * index / max(1, sum(sizes.depths) - 1) for index in range(sum(sizes.depths))])
        strides, inputs = (sizes.patch // SIDES[0], 2), (channels, widths[0])
        self.stages = nn.ModuleList(
            _Stage(
                _Embed(strides[stage], inputs[stage], widths[stage]),
                [_ConvBlock(widths[stage], sizes.mlp_ratios[stage], next(rates)) for _ in range(sizes.depths[stage])],
                nn.Linear(SIDES[stage] ** 2 * widths[stage], width),  # a convolution that spans the patch
            )
            for stage in range(2)
        )
        self.embed = _Embed(2, widths[1], width)
        self.proj = nn.Linear(width, width)
        self.pos_embed = nn.Parameter(sincos_positions(grid, width, prefix=0), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(
                width,
                sizes.heads,
                mlp_ratio=sizes.mlp_ratios[2],
                qkv_bias=True,
                drop_path=next(rates),
                norm_layer=LayerNorm,
            )
            for _ in range(sizes.depths[2])
        )
        self.norm: nn.Module = LayerNorm(width)
        # As the authors do: linear layers and the last embedding by Xavier; convolutions as torch makes them.
        xavier_linears_(self.blocks)
        xavier_linears_(self.proj)
        nn.init.xavier_uniform_(self.embed.proj.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer each parameter belongs to, as timm's networks say it: the stages of convolutions are the stem."""
        return {"stem": r"^pos_embed|stages|embed|proj", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}


class HybridEncoder(Encoder):
    """ConvMAE's encoder: all patches, or the visible ones alone (drop). There is no class token and no mask token.

    Tokens are norm(ViT blocks + what the two stages add at their patch). The authors train so, but leave the stages'
    part out when they fine-tune; here it stays, as features and pre-training are the same function.
    """

    def __init__(self, config: EncoderConfig, *, mask_token: bool) -> None:
        super().__init__(config)
        if mask_token:
            raise ValueError(
                f"{config.name!r} leaves hidden patches out and knows no mask token; choose a ViT for this method"
            )
        self.sizes = hybrid_sizes(config)
        self.mask_token = None
        self._check(config.image_height, config.image_width)
        self.hybrid = HybridNetwork(self.sizes, channels=config.channels, grid=self.grid, drop_path=config.drop_path)
        if not config.final_norm:
            self.remove_norm()

    def _check(self, height: int, width: int) -> None:
        for what, pixels in (("height", height), ("width", width)):
            if pixels < self.sizes.patch or pixels % self.sizes.patch:
                raise ValueError(f"image {what} {pixels} is not divisible by the patch size {self.sizes.patch}")

    @property
    def width(self) -> int:
        return self.sizes.widths[2]

    @property
    def depth(self) -> int:
        """Number of ViT blocks."""
        return self.sizes.depths[2]

    @property
    def prefix(self) -> int:
        return 0

    @property
    def has_class_token(self) -> bool:
        return False

    @property
    def patch(self) -> tuple[int, int]:
        return self.sizes.patch, self.sizes.patch

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.image_height // self.sizes.patch, self.config.image_width // self.sizes.patch

    @property
    def network(self) -> nn.Module:
        return self.hybrid

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The ViT blocks."""
        return list(self.hybrid.blocks)

    @property
    def timm_model(self) -> None:
        """timm has no such network."""
        return None

    def set_image_size(self, height: int, width: int) -> None:
        """Take images of another size from now on: positions are computed anew."""
        self._check(height, width)
        self.config = replace(self.config, image_height=height, image_width=width)
        self.hybrid.pos_embed = nn.Parameter(self._positions(self.grid), requires_grad=False)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        return sincos_positions(grid, self.width, prefix=0).to(self.hybrid.pos_embed)

    def remove_norm(self) -> None:
        self.hybrid.norm = nn.Identity()

    def forward(
        self,
        images_BCHW: Float[Tensor, "B C H W"],
        *,
        drop_BN: Bool[Tensor, "M N"] | None = None,
        replace_BN: Bool[Tensor, "B N"] | None = None,
        hidden: int | None = None,
    ) -> Float[Tensor, "_ L D"]:
        if replace_BN is not None:
            raise ValueError(f"{self.config.name!r} knows no mask token; it can only leave hidden patches out")
        tokens, added = self._stem(images_BCHW, drop_BN, hidden)
        for block in self.hybrid.blocks:
            tokens = self._run(block, tokens)
        return self.hybrid.norm(tokens + added)

    @torch.no_grad()
    def attention(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h N"]:
        tokens, _ = self._stem(images_BCHW, None)
        for block in self.hybrid.blocks[:-1]:
            tokens = block(tokens)
        with RecordAttention() as record:
            self.hybrid.blocks[-1](tokens)
        return record.logits().softmax(dim=-1).mean(dim=2)

    def _stem(
        self, images_BCHW: Tensor, drop_BN: Tensor | None = None, hidden: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [M, V, D] that enter the ViT blocks, and what the stages add to those that leave them."""
        B, channels, height, width = images_BCHW.shape
        if channels != self.config.channels:
            raise ValueError(f"the encoder takes {self.config.channels} channels, got images of {channels}")
        patch = self.sizes.patch
        if height % patch or width % patch:
            raise ValueError(f"image size {height}x{width} is not divisible by the patch size {patch}x{patch}")
        rows, columns = height // patch, width // patch
        tiles = images_BCHW.reshape(B, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1).flatten(1, 2)
        same = (rows, columns) == self.grid
        position: Tensor = self.hybrid.pos_embed if same else self._positions((rows, columns))
        visible_MV = None if drop_BN is None else visible_indices(drop_BN, hidden=hidden)
        if visible_MV is not None:
            assert len(visible_MV) % B == 0, "masks must be as many as images, or a multiple"
            image_M1 = torch.arange(len(visible_MV), device=visible_MV.device)[:, None] % B
            tiles = tiles[image_M1, visible_MV]
            position = position[0, visible_MV]
        layout = _Layout((rows, columns), visible_MV)
        added: list[Tensor] = []
        for stage in self.hybrid.stages:
            assert isinstance(stage, _Stage)
            tiles = stage.embed(tiles)
            for block in stage.blocks:
                tiles = self._run(block, tiles, layout)
            added.append(stage.fuse(tiles.flatten(2)))
        tokens = self.hybrid.proj(self.hybrid.embed(tiles).flatten(2)) + position
        return tokens, added[0] + added[1]

    def _run(self, block: nn.Module, tokens: Tensor, *context: _Layout) -> Tensor:
        if self.config.checkpointing and torch.is_grad_enabled():
            result = checkpoint(block, tokens, *context, use_reentrant=False)
            assert isinstance(result, Tensor)
            return result
        return block(tokens, *context)
