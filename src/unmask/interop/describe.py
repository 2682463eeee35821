"""From the tensors of an encoder, in timm's names, to the configuration that builds it.

Shape legend: N patches, P prefix tokens, D width, h heads, C channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.layers import LayerScale
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unmask.interop.found import Hints, ImageGrid
from unmask.models.build import fixed_patch
from unmask.models.encoder_config import EncoderConfig, blank_timm_model
from unmask.models.hybrid import SIDES
from unmask.models.positions import sincos_positions

USUAL_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
"""Heads of the published ViTs by width."""
VITS = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 1024: "vit_large_patch16_224"}
OTHER_VIT = "vit_base_patch16_224"
BEIT = "beit_base_patch16_224"
REGISTERS = "vit_base_patch14_reg4_dinov2"
USUAL_SIDE = 224
"""Side of the images, in pixels, of an encoder whose tensors do not tell it."""
Positions = Literal["native", "learned", "sincos", "relative", "relative_blocks", "none"]
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
BLOCK_TABLE = "blocks.0.attn.relative_position_bias_table"
PATCHES = "patch_embed.proj.weight"


def describe(tensors: Mapping[str, Tensor], hints: Hints, origin: str) -> EncoderConfig:
    """The configuration of the encoder that holds these tensors. ValueError where they are none that we know, and
    where something cannot be told from them and no hint says it."""
    if "stages.0.embed.proj.weight" in tensors:
        return _hybrid(tensors, hints, origin)
    if hints.encoder is not None and fixed_patch(hints.encoder) is not None:
        model = blank_timm_model(hints.encoder)
        _, height, width = model.pretrained_cfg["input_size"]
        first = tensors.get(f"{model.pretrained_cfg['first_conv']}.weight")
        channels = 3 if first is None else first.shape[1]
        return EncoderConfig(name=hints.encoder, image_height=height, image_width=width, channels=channels)
    if "layer1.0.conv1.weight" in tensors:
        raise ValueError(f"{origin} holds a ResNet: say which, as in --encoder resnet50")
    if PATCHES not in tensors or tensors[PATCHES].ndim != 4 or "blocks.0.norm1.weight" not in tensors:
        raise ValueError(f"{origin} holds no ViT under these names; is --from right?")
    return _vit(tensors, hints, origin)


def _vit(tensors: Mapping[str, Tensor], hints: Hints, origin: str) -> EncoderConfig:
    width, channels, patch, other = tensors[PATCHES].shape
    if patch != other:
        raise ValueError(f"{origin} has patches of {patch}x{other} pixels; only square ones are known here")
    name = hints.encoder or _name(tensors, width)
    model = blank_timm_model(name)
    position, grid = _positions(tensors, model, width, hints, origin)
    rows, columns = grid or (max(1, USUAL_SIDE // patch),) * 2
    first = model.blocks[0]
    fc1 = tensors.get("blocks.0.mlp.fc1.weight")
    ratio = None if fc1 is None else _unless(fc1.shape[0] / width, first.mlp.fc1.out_features / model.embed_dim)
    heads = _heads(tensors, width, hints, origin)
    depth = _count(tensors, r"blocks\.(\d+)\.")
    return EncoderConfig(
        name=name,
        image_height=rows * patch,
        image_width=columns * patch,
        patch_size=patch,
        channels=channels,
        width=_unless(width, model.embed_dim),
        depth=_unless(depth, len(model.blocks)),
        heads=_unless(heads, first.attn.num_heads),
        mlp_ratio=ratio,
        position=position,
        position_resize=hints.position_resize,
        class_token=False if isinstance(model, VisionTransformer) and "cls_token" not in tensors else None,
        final_norm="norm.weight" in tensors,
        layer_scale=_layer_scale(tensors, first),
    )


def _unless(value: Any, usual: Any) -> Any:
    return None if value == usual else value


def _name(tensors: Mapping[str, Tensor], width: int) -> str:
    """timm's name of a network of the same kind. With relative positions a ViT's is enough: timm's Beit is built."""
    if "reg_token" in tensors:
        return REGISTERS
    relative = SHARED_TABLE in tensors or BLOCK_TABLE in tensors
    if not relative and any(mark in tensors for mark in ("blocks.0.attn.q_bias", "blocks.0.gamma_1")):
        return BEIT
    return VITS.get(width, OTHER_VIT)


def _positions(
    tensors: Mapping[str, Tensor], model: Any, width: int, hints: Hints, origin: str
) -> tuple[Positions, ImageGrid | None]:
    """Kind of positions, and the grid of patches that they are for."""
    table = next((name for name in (SHARED_TABLE, BLOCK_TABLE) if name in tensors), None)
    if table is not None:
        if "pos_embed" in tensors:
            raise ValueError(f"{origin} has absolute and relative positions at once, which is not supported")
        grid = _table_grid(tensors[table].shape[0] - 3, hints, origin)  # three more for the class token
        return ("relative" if table == SHARED_TABLE else "relative_blocks"), grid
    if "pos_embed" not in tensors:
        return ("native" if isinstance(model, Eva) else "none"), hints.grid
    position_1LD = tensors["pos_embed"].reshape(1, -1, width)
    prefix = ("cls_token" in tensors) + (tensors["reg_token"].shape[-2] if "reg_token" in tensors else 0)
    if not isinstance(model, Beit) and model.no_embed_class:
        prefix = 0
    patches = position_1LD.shape[1] - prefix
    grid = hints.grid or (math.isqrt(patches),) * 2
    if grid[0] * grid[1] != patches:
        raise ValueError(
            f"{origin} has positions of {patches} patches, which is no grid of {grid[0]}x{grid[1]}; give --grid, or a "
            "name of its kind by --encoder"
        )
    if width % 4 == 0 and not isinstance(model, Eva):
        fixed = sincos_positions(grid, width, prefix=prefix)
        if torch.allclose(position_1LD.float(), fixed, rtol=0, atol=1e-5):
            return "sincos", grid
    return ("learned" if isinstance(model, Beit) else "native"), grid


def _table_grid(offsets: int, hints: Hints, origin: str) -> ImageGrid:
    """The grid whose offsets, (2 rows - 1) x (2 columns - 1), a table of relative positions has."""
    side = math.isqrt(max(0, offsets))
    grid = hints.grid or ((side + 1) // 2, (side + 1) // 2)
    if (2 * grid[0] - 1) * (2 * grid[1] - 1) != offsets:
        raise ValueError(
            f"{origin} has a table of {offsets} relative positions, which is not that of a grid of {grid[0]}x{grid[1]} "
            "patches; give --grid"
        )
    return grid


def _heads(tensors: Mapping[str, Tensor], width: int, hints: Hints, origin: str) -> int:
    for table in (SHARED_TABLE, BLOCK_TABLE):
        if table in tensors:
            return int(tensors[table].shape[1])
    if hints.heads is not None:
        return hints.heads
    if hints.encoder is not None:
        model = blank_timm_model(hints.encoder)
        if model.embed_dim == width:
            return int(model.blocks[0].attn.num_heads)
    if width in USUAL_HEADS:
        return USUAL_HEADS[width]
    if width % 64:
        raise ValueError(
            f"the number of attention heads of {origin} (width {width}) is not in its tensors; give --heads"
        )
    return width // 64


def _layer_scale(tensors: Mapping[str, Tensor], usual: Any) -> float | None:
    """A value where the file has layer scale: what it is comes with the tensors."""
    there = "blocks.0.ls1.gamma" in tensors or "blocks.0.gamma_1" in tensors
    by_name = isinstance(getattr(usual, "ls1", None), LayerScale) or getattr(usual, "gamma_1", None) is not None
    return None if there == by_name else 0.1 if there else 0.0


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    found = (re.match(pattern, name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match is not None), default=-1)


def _hybrid(tensors: Mapping[str, Tensor], hints: Hints, origin: str) -> EncoderConfig:
    """ConvMAE's encoder."""
    try:
        widths = [tensors[f"stages.{stage}.embed.norm.weight"].shape[0] for stage in range(2)]
        ratios = [tensors[f"stages.{stage}.blocks.0.mlp.0.weight"].shape[0] / widths[stage] for stage in range(2)]
        first = tensors["stages.0.embed.proj.weight"]
        width = tensors["proj.weight"].shape[0]
        ratio = tensors["blocks.0.mlp.fc1.weight"].shape[0] / width
        patches = tensors["pos_embed"].reshape(-1, width).shape[0]
    except KeyError as error:
        raise ValueError(f"{origin} lacks {error.args[0]} of ConvMAE's encoder") from error
    if first.ndim != 4:
        raise ValueError(f"{origin} has no convolution that embeds patches")
    stride, channels = first.shape[1], first.shape[3]  # [out, row, column, in]
    grid = hints.grid or (math.isqrt(patches),) * 2
    if grid[0] * grid[1] != patches:
        raise ValueError(f"{origin} has positions of {patches} patches, which is no square; give --grid")
    patch = SIDES[0] * stride
    return EncoderConfig(
        name="convmae_base_patch16",
        image_height=grid[0] * patch,
        image_width=grid[1] * patch,
        patch_size=patch,
        channels=channels,
        width=width,
        depth=_count(tensors, r"blocks\.(\d+)\."),
        heads=_heads(tensors, width, hints, origin),
        mlp_ratio=ratio,
        stage_widths=(widths[0], widths[1]),
        stage_depths=(
            _count(tensors, r"stages\.0\.blocks\.(\d+)\."),
            _count(tensors, r"stages\.1\.blocks\.(\d+)\."),
        ),
        stage_mlp_ratios=(ratios[0], ratios[1]),
        final_norm="norm.weight" in tensors,
    )
