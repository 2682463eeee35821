"""A timm ViT that can also see only some patches (drop) or mask tokens in their place (replace).

Shape legend: B images, C channels, H x W pixels, N patches (row-major), P prefix tokens (class token, registers),
L tokens that the blocks see (P + N, or P + visible), M masks (B, or a multiple), D width, h heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmask.masking import visible_indices
from unmask.models.attention import RecordAttention
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig, timm_arguments
from unmask.models.initialise import xavier_linears_, xavier_patches_
from unmask.models.lean_attention import lean_attention_
from unmask.models.places import fill_places
from unmask.models.positions import resample_positions, sincos_positions


@contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Inside, an attribute (a parameter too) has another value."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


class VitEncoder(Encoder):
    """A timm ViT in three input modes: all patches (full), visible patches only (drop), mask tokens (replace)."""

    def __init__(self, config: EncoderConfig, *, mask_token: bool) -> None:
        super().__init__(config)
        name, arguments = timm_arguments(config)
        # One of TIMM_VITS; their attributes have no types.
        try:
            self.vit = cast(Any, timm.create_model(name, pretrained=False, **arguments))
        except AssertionError as error:
            raise ValueError(f"timm cannot build {config.name!r} with these sizes ({error})") from error
        lean_attention_(self.vit)
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.width)) if mask_token else None
        if config.init == "xavier":
            xavier_linears_(self.vit)
            xavier_patches_(self.vit.patch_embed.proj)
            if self.has_class_token:
                nn.init.normal_(self.vit.cls_token, std=0.02)
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        if config.position == "sincos":
            self._set_sincos()
        if not config.final_norm:
            self.remove_norm()

    def _set_sincos(self) -> None:
        assert isinstance(self.vit, VisionTransformer | Beit)
        prefix = 0 if isinstance(self.vit, VisionTransformer) and self.vit.no_embed_class else self.prefix
        self.vit.pos_embed = nn.Parameter(
            sincos_positions(self.grid, self.width, prefix=prefix).to(self.vit.patch_embed.proj.weight),
            requires_grad=False,
        )

    @property
    def width(self) -> int:
        """Width D of the tokens."""
        return int(self.vit.embed_dim)

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.vit.blocks)

    @property
    def prefix(self) -> int:
        """Number P of tokens before the patches: class token and registers."""
        return int(self.vit.num_prefix_tokens)

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return self.vit.cls_token is not None

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch, in pixels."""
        height, width = self.vit.patch_embed.patch_size
        return int(height), int(width)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.vit.patch_embed.grid_size
        return int(rows), int(columns)

    def set_image_size(self, height: int, width: int) -> None:
        """Take images of another size from now on: learned positions and bias tables are interpolated (timm's way),
        sin-cos positions are computed anew. Both must be multiples of the patch size."""
        for what, pixels, patch in (("height", height, self.patch[0]), ("width", width, self.patch[1])):
            if pixels < patch or pixels % patch:
                raise ValueError(f"image {what} {pixels} is not divisible by the patch size {patch}")
        with warnings.catch_warnings():
            # timm's interpolation of tables uses what torch calls slow or old; neither is the user's to mend.
            warnings.simplefilter("ignore", UserWarning)
            self.vit.set_input_size(img_size=(height, width))
        self.config = replace(self.config, image_height=height, image_width=width)
        if self.config.position == "sincos":
            self._set_sincos()

    def forward(
        self,
        images_BCHW: Float[Tensor, "B C H W"],
        *,
        drop_BN: Bool[Tensor, "M N"] | None = None,
        replace_BN: Bool[Tensor, "B N"] | None = None,
        hidden: int | None = None,
    ) -> Float[Tensor, "_ L D"]:
        (last,) = self.block_outputs(
            images_BCHW, (self.depth - 1,), drop_BN=drop_BN, replace_BN=replace_BN, hidden=hidden
        )
        return self.norm(last)

    def norm(self, tokens_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The final norm, for what `block_outputs` gives."""
        return self.vit.norm(tokens_BLD)

    def remove_norm(self) -> None:
        self.vit.norm = nn.Identity()

    @property
    def network(self) -> nn.Module:
        return self.vit

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.vit.blocks)

    @property
    def timm_model(self) -> tuple[str, dict[str, Any]] | None:
        # Stochastic depth is for training; whoever loads the encoder decides anew.
        name, arguments = timm_arguments(self.config)
        arguments["drop_path_rate"] = 0.0
        if not self.config.final_norm:
            if isinstance(self.vit, Beit):
                return None  # timm's always has a norm, here or after pooling
            plain = isinstance(self.vit, VisionTransformer)
            arguments["final_norm" if plain else "use_post_transformer_norm"] = False
        return name, arguments

    def block_outputs(
        self,
        images_BCHW: Float[Tensor, "B C H W"],
        blocks: tuple[int, ...],
        *,
        drop_BN: Bool[Tensor, "M N"] | None = None,
        replace_BN: Bool[Tensor, "B N"] | None = None,
        hidden: int | None = None,
    ) -> tuple[Float[Tensor, "_ L D"], ...]:
        """Raw outputs, before the final norm, of the blocks with these indices (0 is the first), in that order.

        Input modes as in `forward`. Blocks after the last one that is asked for are not computed.
        """
        assert drop_BN is None or replace_BN is None, "patches are dropped or replaced, not both"
        tokens_BLD, context = self._embed(images_BCHW, drop_BN, replace_BN, hidden)
        found: dict[int, Tensor] = {}
        for index, block in enumerate(self.vit.blocks[: max(blocks) + 1]):
            if self.config.checkpointing and torch.is_grad_enabled():
                run: Callable[..., Tensor] = partial(block, **context)
                tokens_BLD = checkpoint(run, tokens_BLD, use_reentrant=False)
            else:
                tokens_BLD = block(tokens_BLD, **context)
            if index in blocks:
                found[index] = tokens_BLD
        return tuple(found[index] for index in blocks)

    def further(self, blocks: Iterable[nn.Module], tokens_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Tokens of whole images (prefix tokens and all patches) after more blocks of the encoder's own kind, which
        share its table of relative positions or its rotation (BEiT v2)."""
        context = self._context(self.grid, None)
        for block in blocks:
            tokens_BLD = block(tokens_BLD, **context)
        return tokens_BLD

    def embed(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        """What enters the first block: prefix tokens and all patches, with their positions."""
        tokens_BLD, _ = self._embed(images_BCHW)
        return tokens_BLD

    def run_block(
        self, index: int, tokens_MLD: Float[Tensor, "M L D"], places_L: Int64[Tensor, " L"]
    ) -> Float[Tensor, "M L D"]:
        """Tokens after block `index`, where only those at `places_L` of a whole image's tokens (prefix tokens, then
        patches) are there to attend to each other.

        Relative positions, shared or the block's own, and rotations are those of these places in the encoder's grid;
        they depend on offsets alone, so any equal part of the grid has the same. Prefix tokens come first, if at all.
        """

        def run(tokens: Tensor) -> Tensor:
            with self._attending(index, places_L) as context:
                return self.vit.blocks[index](tokens, **context)

        if self.config.checkpointing and torch.is_grad_enabled():
            return checkpoint(run, tokens_MLD, use_reentrant=False)
        return run(tokens_MLD)

    @contextmanager
    def _attending(self, index: int, places_L: Tensor) -> Iterator[dict[str, Tensor | None]]:
        """What block `index` needs beside tokens at these places; inside, the block's attention counts on no others."""
        vit = self.vit
        if isinstance(vit, VisionTransformer):
            yield {}
            return
        attention = cast(Any, vit.blocks[index]).attn
        if isinstance(vit, Beit):
            holder = attention if vit.rel_pos_bias is None else cast(Any, vit.rel_pos_bias)
            table = holder.relative_position_bias_table
            if table is None:
                yield {"shared_rel_pos_bias": None}
                return
            offsets_LL = holder.relative_position_index[places_L[:, None], places_L]
            with _replaced(attention, "relative_position_bias_table", None):
                yield {"shared_rel_pos_bias": table[offsets_LL].permute(2, 0, 1)}
            return
        patches = places_L >= self.prefix
        with _replaced(attention, "num_prefix_tokens", int((~patches).sum())):
            rope_NR = None if vit.rope is None else vit.rope.get_embed(list(self.grid))
            yield {"rope": None if rope_NR is None else rope_NR[places_L[patches] - self.prefix]}

    @torch.no_grad()
    def attention(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h N"]:
        """For each head of the last block, how much the class token (or, without one, the mean patch) attends to each
        patch; a picture for people, not part of any loss."""
        tokens_BLD, context = self._embed(images_BCHW)
        for block in self.vit.blocks[:-1]:
            tokens_BLD = block(tokens_BLD, **context)
        with RecordAttention() as record:
            self.vit.blocks[-1](tokens_BLD, **context)
        queries = slice(0, 1) if self.has_class_token else slice(self.prefix, None)
        return record.logits().softmax(dim=-1)[:, :, queries, self.prefix :].mean(dim=2)

    def _embed(
        self,
        images_BCHW: Tensor,
        drop_BN: Tensor | None = None,
        replace_BN: Tensor | None = None,
        hidden: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Tokens that enter the first block, and what every block needs beside them (bias or rotation)."""
        vit = self.vit
        _, channels, height, width = images_BCHW.shape
        if channels != self.config.channels:
            raise ValueError(f"the encoder takes {self.config.channels} channels, got images of {channels}")
        (ph, pw) = self.patch
        if height % ph or width % pw:
            raise ValueError(f"image size {height}x{width} is not divisible by the patch size {ph}x{pw}")
        grid = (height // ph, width // pw)
        visible_BV = None if drop_BN is None else visible_indices(drop_BN, hidden=hidden)
        if replace_BN is not None and self.mask_token is None:
            raise ValueError("this encoder was built without a mask token; build it with mask_token=True")
        # What no token comes of is not embedded: dropped patches, and replaced ones where their number is known.
        batch = images_BCHW.shape[0]  # not len(): that would fix the batch of an export
        own_BV = visible_BV if visible_BV is not None and len(visible_BV) == batch else None
        if replace_BN is not None and hidden is not None:
            shown = self._embed_patches(images_BCHW, visible_indices(replace_BN, hidden=hidden))
            patches = fill_places(shown, self._mask_token()[0], replace_BN)
        else:
            patches = self._embed_patches(images_BCHW, own_BV)
            if replace_BN is not None:
                patches = torch.where(replace_BN[..., None], self._mask_token().to(patches.dtype), patches)

        # Prefix tokens and patches get their positions apart, so that dropping patches is one gather in between.
        prefix = [] if vit.cls_token is None else [vit.cls_token]
        if not isinstance(vit, Beit) and vit.reg_token is not None:
            prefix.append(vit.reg_token)
        prefix_1PD = torch.cat(prefix, dim=1) if prefix else None
        if vit.pos_embed is not None:
            positioned_prefix = 0 if not isinstance(vit, Beit) and vit.no_embed_class else self.prefix
            position = vit.pos_embed
            if grid != self.grid:
                position = resample_positions(
                    position, self.grid, grid, prefix=positioned_prefix, way=self.config.position_resize
                )
            of_patches = position[:, positioned_prefix:]
            patches = patches + (of_patches if own_BV is None else F.embedding(own_BV, of_patches[0]))
            if prefix_1PD is not None and positioned_prefix:
                prefix_1PD = prefix_1PD + position[:, :positioned_prefix]
        if visible_BV is not None and own_BV is None:
            assert len(visible_BV) % batch == 0, "masks must be as many as images, or a multiple"
            # Masks can be several times as many as images, which are embedded once for all (ExtreMA).
            image_B1 = torch.arange(len(visible_BV), device=visible_BV.device)[:, None] % batch
            rows = (image_B1 * patches.shape[1] + visible_BV).flatten()
            patches = patches.flatten(0, 1).index_select(0, rows).unflatten(0, visible_BV.shape)
        tokens = patches
        if prefix_1PD is not None:
            tokens = torch.cat([prefix_1PD.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = vit.pos_drop(tokens)
        if not isinstance(vit, Beit):
            tokens = vit.norm_pre(tokens)
        return tokens, self._context(grid, visible_BV)

    def _mask_token(self) -> Tensor:
        assert self.mask_token is not None
        return self.mask_token

    def _embed_patches(self, images_BCHW: Tensor, chosen_BV: Tensor | None) -> Tensor:
        """Embedded patches [B, V, D] of those at `chosen_BV`, of all for None."""
        embed = self.vit.patch_embed
        if chosen_BV is None:
            return embed.norm(embed.proj(images_BCHW).flatten(2).transpose(1, 2))
        B, C, height, width = images_BCHW.shape
        ph, pw = self.patch
        columns = width // pw
        cells = images_BCHW.reshape(B, C, height // ph, ph, columns, pw).permute(0, 2, 4, 1, 3, 5)
        image_B1 = torch.arange(B, device=chosen_BV.device)[:, None]
        pixels = cells[image_B1, chosen_BV // columns, chosen_BV % columns].flatten(2)
        return embed.norm(F.linear(pixels, embed.proj.weight.flatten(1), embed.proj.bias))

    def _context(self, grid: tuple[int, int], visible_BV: Tensor | None) -> dict[str, Tensor | None]:
        vit = self.vit
        if isinstance(vit, VisionTransformer):
            return {}
        if grid != self.grid:
            raise ValueError(
                f"relative positions were built for {self.grid[0]}x{self.grid[1]} patches, got {grid[0]}x{grid[1]}; "
                "call set_image_size first"
            )
        if isinstance(vit, Beit):
            shared = cast(Any, vit.rel_pos_bias)
            if shared is None:
                first = cast(Any, vit.blocks[0])
                if visible_BV is not None and first.attn.relative_position_bias_table is not None:
                    raise ValueError("patches cannot be dropped where every block has its own relative positions")
                return {"shared_rel_pos_bias": None}
            bias_hLL = shared()
            if visible_BV is None:
                return {"shared_rel_pos_bias": bias_hLL}
            batch = visible_BV.shape[0]
            kept_BL = torch.cat(
                [
                    torch.arange(self.prefix, device=visible_BV.device).expand(batch, -1),
                    visible_BV + self.prefix,
                ],
                dim=1,
            )
            bias_hBLL = bias_hLL[:, kept_BL[:, :, None], kept_BL[:, None, :]]
            return {"shared_rel_pos_bias": bias_hBLL.transpose(0, 1)}
        if vit.rope is None:
            return {"rope": None}
        # Some rotations are cached for the grid, some (DINOv3's) are built when asked.
        rope_NR = vit.rope.get_embed(list(grid))
        return {"rope": rope_NR if visible_BV is None else rope_NR[visible_BV][:, None]}
