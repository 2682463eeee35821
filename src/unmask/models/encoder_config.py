"""Which network is the encoder, and what is changed in it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import timm
import torch
from timm.layers import LayerScale, PatchEmbed
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    VisionTransformer,
)
from typing_extensions import Doc

from unmask.errors import in_short

TIMM_VITS = (VisionTransformer, Beit, Eva)
PARALLEL_BLOCKS = (ParallelScalingBlock, DiffParallelScalingBlock, ParallelThingsBlock)
MOST = {"depth": 200, "stage depth": 200, "number of colours": 1 << 16, "channels": 1024}
"""Sizes that cost time or memory before a weight is made, at most; a file of others may ask for anything."""
FAMILIES = "vit_*, deit*, beit*, eva02_* and their kin"


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which network, and what is changed in it. None keeps what the name says.

    A convolutional network takes images, channels and drop_path from here, and nothing that belongs to a ViT.
    """

    name: Annotated[
        str,
        Doc(
            "Name of a timm ViT (vit_*, deit3_*, beit*, eva02_*), of a timm network that gives feature maps (resnet*, "
            "convnext*), of ConvMAE's hybrid (convmae_base_patch16), or of iGPT's over colours (igpt_small)."
        ),
    ] = "vit_small_patch16_224"
    image_height: Annotated[int, Doc("Height of the images, in pixels; a multiple of the patch size.")] = 224
    image_width: Annotated[int, Doc("Width of the images, in pixels; a multiple of the patch size.")] = 224
    patch_size: Annotated[int | None, Doc("Side of a square patch, in pixels.")] = None
    channels: Annotated[int, Doc("Channels of the images.")] = 3
    width: Annotated[int | None, Doc("Width of the tokens.")] = None
    depth: Annotated[int | None, Doc("Number of transformer blocks.")] = None
    heads: Annotated[int | None, Doc("Attention heads of each block.")] = None
    mlp_ratio: Annotated[float | None, Doc("Hidden width of a block's MLP by its width.")] = None
    stage_widths: Annotated[
        tuple[int, int] | None, Doc("Widths of a convmae_* encoder's two stages of convolutions.")
    ] = None
    stage_depths: Annotated[tuple[int, int] | None, Doc("Numbers of convolution blocks of these stages.")] = None
    stage_mlp_ratios: Annotated[
        tuple[float, float] | None, Doc("Hidden widths of their MLPs by their widths; None: mlp_ratio.")
    ] = None
    colours: Annotated[int | None, Doc("Colours of an igpt_* encoder's palette; None: 512.")] = None
    causal: Annotated[
        bool | None, Doc("Whether a pixel of an igpt_* encoder sees only those before it; iGPT's objective decides.")
    ] = None
    position: Annotated[
        Literal["native", "learned", "sincos", "relative", "relative_blocks", "none"],
        Doc(
            "native: as timm has it; learned or fixed sincos: one vector a position; relative: BEiT's table of biases, "
            "shared by all blocks (a vit_* name is then built as timm's Beit of the same size); relative_blocks: "
            "a table in every block, as the BEiT family fine-tunes."
        ),
    ] = "native"
    position_resize: Annotated[
        Literal["antialias", "offset", "scale"],
        Doc(
            "How absolute positions follow crops of another size: antialias: timm's bicubic; offset: DINO's and iBOT's "
            "bicubic with 0.1 added to the grid; scale: MSN's, one scale for both sides."
        ),
    ] = "antialias"
    class_token: Annotated[
        bool | None, Doc("Whether a class token goes through the blocks; ExtreMA's trunk has none.")
    ] = None
    final_norm: Annotated[bool, Doc("Whether a norm ends the encoder; MaskFeat's and SIM's have none.")] = True
    layer_scale: Annotated[float | None, Doc("Initial value of layer scale; 0 switches it off.")] = None
    drop_path: Annotated[float, Doc("Stochastic depth of the last block (grows linearly with depth).")] = 0.0
    init: Annotated[
        Literal["timm", "xavier"],
        Doc("timm: truncated normal .02 (BEiT also divides by sqrt(2 x block)); xavier: uniform, as MAE's authors."),
    ] = "timm"
    checkpointing: Annotated[
        bool, Doc("Recompute activations in the backward pass: less memory, about a third more time.")
    ] = False

    def __post_init__(self) -> None:
        sizes = {
            "patch size": (self.patch_size,),
            "channels": (self.channels,),
            "width": (self.width,),
            "depth": (self.depth,),
            "heads": (self.heads,),
            "number of colours": (self.colours,),
            "stage width": self.stage_widths or (),
            "stage depth": self.stage_depths or (),
        }
        for what, values in sizes.items():
            for value in values:
                if value is not None and value < 1:
                    raise ValueError(f"encoder {what} must be at least 1, got {in_short(value)}")
                if value is not None and value > MOST.get(what, value):
                    raise ValueError(f"encoder {what} must be at most {MOST[what]}, got {in_short(value)}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop path must lie in [0, 1), got {self.drop_path}")

    def __str__(self) -> str:
        """In words, for people: name, what was changed in it, image and patch."""
        changes = [
            f"{what} {value}"
            for what, value in (("width", self.width), ("depth", self.depth), ("heads", self.heads))
            if value is not None
        ]
        size = f"{self.image_height}x{self.image_width} pixels"
        patch = [] if self.patch_size is None else [f"patches of {self.patch_size}"]
        return ", ".join([self.name, *changes, size, *patch])


def timm_arguments(config: EncoderConfig) -> tuple[str, dict[str, Any]]:
    """The timm name and arguments that rebuild this encoder by `timm.create_model(name, **arguments)` alone."""
    name = config.name
    model = blank_timm_model(name)
    if config.stage_widths or config.stage_depths or config.stage_mlp_ratios:
        raise ValueError(f"{name!r} has no stages of convolutions to set; those belong to convmae_* encoders")
    if config.colours is not None or config.causal is not None:
        raise ValueError(f"{name!r} has no palette and no order of pixels to set; those belong to igpt_* encoders")
    # Exact types: a distilled DeiT derives from VisionTransformer and has a second class token of its own.
    plain, beit, eva = (type(model) is family for family in TIMM_VITS)
    patches_only = (plain or beit or eva) and isinstance(model.patch_embed, PatchEmbed)
    if not patches_only or isinstance(model.blocks[0], PARALLEL_BLOCKS):
        raise ValueError(
            f"{name!r} is not a plain ViT; use one of {FAMILIES}, or a network that gives feature maps "
            "(resnet*, convnext* and their kin)"
        )
    if eva and model.rope_mixed:
        raise ValueError(f"{name!r} has a rotation of its own in every block, which is not supported")
    patch_height, patch_width = model.patch_embed.patch_size
    patch = config.patch_size or patch_height
    if config.patch_size is None and patch_height != patch_width:
        raise ValueError(f"{name!r} has patches that are not square")
    for what, pixels in (("height", config.image_height), ("width", config.image_width)):
        if pixels < patch or pixels % patch:
            raise ValueError(f"image {what} {pixels} is not divisible by the patch size {patch}")
    arguments: dict[str, Any] = {
        "num_classes": 0,
        "img_size": (config.image_height, config.image_width),
        "patch_size": patch,
        "in_chans": config.channels,
        "global_pool": "avg",
        "drop_path_rate": config.drop_path,
    }
    # The final norm stands before pooling, so that tokens and pooled features come from the same norm.
    arguments["fc_norm" if plain else "use_fc_norm"] = False
    if eva:
        arguments["use_post_transformer_norm"] = True
    relative = config.position in ("relative", "relative_blocks")
    if relative and not beit:
        if eva:
            raise ValueError(f"{name!r} has rotary positions; position 'relative' needs a vit_* or beit* name")
        name = "beit_base_patch16_224"
        first = model.blocks[0]
        mlp_ratio = first.mlp.fc1.out_features / model.embed_dim
        if not isinstance(first, Block):
            raise ValueError(
                f"{config.name!r} has blocks of its own kind; position 'relative' needs a plain vit_* name"
            )
        arguments |= {
            "embed_dim": model.embed_dim,
            "depth": len(model.blocks),
            "num_heads": first.attn.num_heads,
            "mlp_ratio": mlp_ratio,
            # 0 and not None: timm drops None and would take the name's own value.
            "init_values": first.ls1.init_values if isinstance(first.ls1, LayerScale) else 0.0,
        }
        arguments.pop("fc_norm", None)
        arguments["use_fc_norm"] = False
    is_beit = beit or relative
    if is_beit and config.position != "native":
        arguments["use_abs_pos_emb"] = config.position in ("learned", "sincos")
        arguments["use_shared_rel_pos_bias"] = config.position == "relative"
        arguments["use_rel_pos_bias"] = config.position == "relative_blocks"
    elif eva and config.position not in ("native", "learned"):
        raise ValueError(f"{name!r} has rotary positions; choose position 'native'")
    elif plain and not is_beit and config.position != "native":
        arguments["pos_embed"] = "none" if config.position == "none" else "learn"
    if config.class_token is not None:
        if not plain or is_beit:
            raise ValueError(f"{config.name!r} keeps its class token as it is; choose a vit_* name to set it")
        arguments["class_token"] = config.class_token
    for key, value in (
        ("embed_dim", config.width),
        ("depth", config.depth),
        ("num_heads", config.heads),
        ("mlp_ratio", config.mlp_ratio),
    ):
        if value is not None:
            arguments[key] = value
    width = arguments.get("embed_dim", model.embed_dim)
    heads = arguments.get("num_heads", model.blocks[0].attn.num_heads)
    if width % heads:
        raise ValueError(f"encoder width {width} is not divisible by its {heads} heads")
    if config.layer_scale is not None:
        if eva and not config.layer_scale:
            raise ValueError(f"{name!r} keeps its layer scale as it is; give it another value than 0")
        arguments["init_values"] = config.layer_scale
    return name, arguments


def blank_timm_model(name: str) -> Any:
    """timm's model of this name without memory for its weights, to read sizes from: timm keeps no table of them.

    ValueError for a name that timm does not know.
    """
    # Only names in timm's own list: create_model would also look on the network for others ("hf-hub:...").
    if not timm.is_model(name):
        raise ValueError(_unknown(name))
    try:
        return _blank(name)
    except RuntimeError as error:
        raise ValueError(_unknown(name)) from error


@cache
def _blank(name: str) -> Any:
    """timm's model without memory for its weights, to read sizes from: timm keeps no table of them."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, num_classes=0)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    return f"timm knows no model named {in_short(name)}" + (f"; near names: {', '.join(near)}" if near else "")
