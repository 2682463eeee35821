"""iGPT's encoder: a transformer over the colours of pixels, each named by its nearest colour of a palette.

A patch is one pixel of the picture that the transformer sees: with `patch_size` above 1 the image is averaged down, as
iGPT does to 32 x 32. Tokens for evaluation are those of the middle of the network, where the paper finds the best
features: what enters the attention of the block after the middle one, norm included.

Shape legend: B images, C channels, H x W image pixels, N patches (pixels of the small picture, row-major), V colours
of the palette, D width, h heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmask.errors import in_short
from unmask.models.attention import RecordAttention
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.palette import nearest_colours, spread_palette
from unmask.models.positions import resample_positions

PIXELS_PREFIX = "igpt_"
COLOURS = 512


@dataclass(frozen=True, kw_only=True)
class PixelSizes:
    """Sizes of the transformer."""

    width: int
    depth: int
    heads: int


# tiny: ours, as a tiny ViT; the others: the paper's S, M and L.
PIXEL_SIZES = {
    "igpt_tiny": PixelSizes(width=192, depth=12, heads=3),
    "igpt_small": PixelSizes(width=512, depth=24, heads=8),
    "igpt_medium": PixelSizes(width=1024, depth=36, heads=8),
    "igpt_large": PixelSizes(width=1536, depth=48, heads=16),
}


def pixel_sizes(config: EncoderConfig) -> PixelSizes:
    """The sizes that a configuration means. ValueError for an unknown name and for what such an encoder has not."""
    name = config.name
    if name not in PIXEL_SIZES:
        raise ValueError(f"there is no encoder named {in_short(name)}; iGPT's are {', '.join(PIXEL_SIZES)}")
    refused = {
        f"position {config.position!r} (its own are learned)": config.position not in ("native", "learned"),
        "class token": config.class_token is True,
        "layer scale": bool(config.layer_scale),
        "stages of convolutions": bool(config.stage_widths or config.stage_depths or config.stage_mlp_ratios),
    }
    for what, wrong in refused.items():
        if wrong:
            raise ValueError(f"{name!r} has no {what}")
    usual = PIXEL_SIZES[name]
    sizes = PixelSizes(
        width=config.width or usual.width, depth=config.depth or usual.depth, heads=config.heads or usual.heads
    )
    if sizes.width % sizes.heads:
        raise ValueError(f"encoder width {sizes.width} is not divisible by its {sizes.heads} heads")
    return sizes


class _Norm(nn.RMSNorm):
    """Scaled to a mean square of one, without mean and bias: the authors' norm."""

    def __init__(self, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(width, eps=1e-5, device=device, dtype=dtype)


class PixelNetwork(nn.Module):
    """The layers and the palette; `PixelEncoder` feeds them."""

    palette_VC: Tensor
    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: EncoderConfig, sizes: PixelSizes, patches: int) -> None:
        super().__init__()
        colours, width = config.colours or COLOURS, sizes.width
        # Colours in [0, 1], and the normalisation of the images that come in.
        self.register_buffer("palette_VC", spread_palette(colours, config.channels))
        self.register_buffer("mean_C", torch.full((config.channels,), 0.5))
        self.register_buffer("std_C", torch.full((config.channels,), 0.5))
        self.embed = nn.Embedding(colours, width)
        self.pos_embed = nn.Parameter(0.01 * torch.randn(1, patches, width))
        # What the first pixel is told from.
        self.start = nn.Parameter(0.02 * torch.randn(1, 1, width)) if config.causal is not False else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                sizes.heads,
                mlp_ratio=config.mlp_ratio or 4.0,
                proj_bias=False,
                norm_layer=_Norm,
                act_layer=QuickGELU,
                drop_path=config.drop_path * position / max(1, sizes.depth - 1),
            )
            for position in range(sizes.depth)
        )
        self.norm: nn.Module = _Norm(width)
        self._initialise()

    def _initialise(self) -> None:
        """As the authors: .02 for embedding and MLPs, 1 / sqrt(width) for queries, keys and values, and that by the
        root of the depth for what leaves attention."""
        nn.init.normal_(self.embed.weight, std=0.02)
        attention = self.embed.embedding_dim**-0.5
        deviations = {"qkv": attention, "proj": attention * len(self.blocks) ** -0.5, "fc1": 0.02, "fc2": 0.02}
        for name, weight in self.blocks.named_parameters():
            layer = name.split(".")[-2]
            if layer in deviations:
                nn.init.normal_(weight, std=deviations[layer])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer each parameter belongs to, as timm's networks say it."""
        return {"stem": r"^pos_embed|start|embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}


class PixelEncoder(Encoder):
    """A transformer over named colours: causal (each pixel sees those before it), or seeing all of them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.sizes = pixel_sizes(config)
        self.mask_token = None
        self._check(config.image_height, config.image_width)
        self.pixels = PixelNetwork(config, self.sizes, self.grid[0] * self.grid[1])
        if not config.final_norm:
            self.remove_norm()

    def _check(self, height: int, width: int) -> None:
        for what, pixels, patch in (("height", height, self.patch[0]), ("width", width, self.patch[1])):
            if pixels < patch or pixels % patch:
                raise ValueError(f"image {what} {pixels} is not divisible by the patch size {patch}")

    @property
    def width(self) -> int:
        return self.sizes.width

    @property
    def depth(self) -> int:
        return self.sizes.depth

    @property
    def prefix(self) -> int:
        return 0

    @property
    def has_class_token(self) -> bool:
        return False

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width, in image pixels, of what becomes one pixel of the small picture."""
        return self.config.patch_size or 1, self.config.patch_size or 1

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.image_height // self.patch[0], self.config.image_width // self.patch[1]

    @property
    def network(self) -> nn.Module:
        return self.pixels

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """All but the middle one, whose first norm is called alone."""
        return [block for index, block in enumerate(self.pixels.blocks) if index != self.middle]

    @property
    def timm_model(self) -> None:
        """timm has no such network."""
        return None

    @property
    def causal(self) -> bool:
        """Whether a pixel sees only those before it."""
        return self.pixels.start is not None

    @property
    def colours(self) -> int:
        """Number V of colours of the palette."""
        return len(self.pixels.palette_VC)

    @property
    def middle(self) -> int:
        """Number of blocks before the tokens that are features."""
        return (self.depth + 1) // 2

    def set_image_size(self, height: int, width: int) -> None:
        """Take images of another size from now on: positions are interpolated."""
        self._check(height, width)
        old = self.grid
        self.config = replace(self.config, image_height=height, image_width=width)
        position = resample_positions(
            self.pixels.pos_embed.detach(), old, self.grid, prefix=0, way=self.config.position_resize
        )
        self.pixels.pos_embed = nn.Parameter(position, requires_grad=self.pixels.pos_embed.requires_grad)

    def set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Tell how the images that come in are normalised: the palette's colours are not."""
        for name, values in (("mean_C", mean), ("std_C", std)):
            self.pixels.get_buffer(name).copy_(torch.tensor(values))

    def remove_norm(self) -> None:
        self.pixels.norm = nn.Identity()

    @torch.no_grad()
    def picture(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N C"]:
        """Colours, in [0, 1], of the small picture's pixels."""
        _, channels, height, width = images_BCHW.shape
        if channels != self.config.channels:
            raise ValueError(f"the encoder takes {self.config.channels} channels, got images of {channels}")
        (ph, pw), net = self.patch, self.pixels
        if height % ph or width % pw:
            raise ValueError(f"image size {height}x{width} is not divisible by the patch size {ph}x{pw}")
        small_BNC = F.avg_pool2d(images_BCHW, (ph, pw)).flatten(2).transpose(1, 2)
        return small_BNC.to(net.palette_VC.dtype) * net.std_C + net.mean_C

    @torch.no_grad()
    def ids(self, images_BCHW: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        """The palette's nearest colour of each pixel of the small picture."""
        picture_BNC = self.picture(images_BCHW)
        with torch.autocast(images_BCHW.device.type, enabled=False):
            ids = nearest_colours(picture_BNC.flatten(0, 1), self.pixels.palette_VC)
        return ids.view(picture_BNC.shape[:2])

    def forward(
        self,
        images_BCHW: Float[Tensor, "B C H W"],
        *,
        drop_BN: Bool[Tensor, "M N"] | None = None,
        replace_BN: Bool[Tensor, "B N"] | None = None,
        hidden: int | None = None,
    ) -> Float[Tensor, "_ L D"]:
        """Tokens of the middle of the network, one a pixel; of a causal one, each knows the pixels before its own."""
        if drop_BN is not None:
            raise ValueError(f"{self.config.name!r} reads pixels in their order; none can be left out")
        (rows, columns), (ph, pw) = images_BCHW.shape[2:], self.patch
        tokens_BND = self._embed(self.ids(images_BCHW), replace_BN, (rows // ph, columns // pw))
        tokens_BND = self._run(self.pixels.blocks[: self.middle], tokens_BND)
        if self.middle == self.depth:
            return self.pixels.norm(tokens_BND)
        block = self.pixels.blocks[self.middle]
        assert isinstance(block, Block)
        return block.norm1(tokens_BND)

    def last_tokens(
        self, ids_BN: Int64[Tensor, "B N"], hide_BN: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Tokens after the last block and the final norm, from which colours are told.

        Causal: token j knows the colours before j alone. hide_BN: colours that are not shown (their embedding is zero).
        """
        return self.pixels.norm(self._run(self.pixels.blocks, self._embed(ids_BN, hide_BN, self.grid)))

    @torch.no_grad()
    def attention(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h N"]:
        """For each head of the last block before the features, how much the mean pixel attends to each."""
        tokens_BND = self._embed(self.ids(images_BCHW), None, self.grid)
        tokens_BND = self._run(self.pixels.blocks[: self.middle - 1], tokens_BND)
        with RecordAttention() as record:
            self._run(self.pixels.blocks[self.middle - 1 : self.middle], tokens_BND)
        logits = record.logits()
        if self.causal:
            later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        return logits.softmax(dim=-1).mean(dim=2)

    def _embed(self, ids_BN: Tensor, hide_BN: Tensor | None, grid: tuple[int, int]) -> Tensor:
        net = self.pixels
        tokens_BND = net.embed(ids_BN)
        if hide_BN is not None:
            tokens_BND = tokens_BND.masked_fill(hide_BN[..., None], 0.0)
        if net.start is not None:
            tokens_BND = torch.cat([net.start.expand(ids_BN.shape[0], -1, -1), tokens_BND[:, :-1]], dim=1)
        position: Tensor = net.pos_embed
        if grid != self.grid:
            position = resample_positions(position, self.grid, grid, prefix=0, way=self.config.position_resize)
        return tokens_BND + position

    def _run(self, blocks: Iterable[nn.Module], tokens_BND: Tensor) -> Tensor:
        for block in blocks:
            run = partial(block, is_causal=self.causal)
            if self.config.checkpointing and torch.is_grad_enabled():
                tokens_BND = checkpoint(run, tokens_BND, use_reentrant=False)
            else:
                tokens_BND = run(tokens_BND)
        return tokens_BND
