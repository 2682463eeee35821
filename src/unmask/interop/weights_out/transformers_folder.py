"""A folder that `AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained` of transformers load as it is.

A plain ViT becomes a ViTModel, one with layer scale or registers a Dinov2Model, one of timm's Beit a BeitModel. The
names in the file are those of `interop.huggingface`, read the other way round.

Shape legend: P prefix tokens, N patches, L tokens, D width.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import LayerScale, Mlp
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from unmask.extras import require
from unmask.interop.authors.names import NameTable, our_name
from unmask.interop.huggingface import COMMON, CONFIG, PREPROCESSOR
from unmask.interop.weights_out.compare import Difference, difference, tokens_of
from unmask.interop.weights_out.shared import instead, margin
from unmask.models.encoder import Encoder
from unmask.models.pretrained import PretrainedEncoder, encoder_file
from unmask.models.vit import VitEncoder
from unmask.training.checkpoint import write_atomically

BICUBIC = 3
"""Pillow's number of it, as preprocessor_config.json has it."""
_OLDER = (".intermediate.dense", ".layer.*.output.dense", ".layernorm_before", ".layernorm_after")
"""In names of blocks that ViT and BEiT have and DINOv2 has not."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of transformers' networks for an encoder of ours."""

    kind: str
    """`model_type` in config.json."""
    architecture: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    """By our names, in that family's layout; queries, keys and values apart."""


def write_transformers(pretrained: PretrainedEncoder, images_BCHW: Tensor, folder: Path) -> list[Difference]:
    """Write `config.json`, `model.safetensors` and `preprocessor_config.json`, and compare what transformers loads.

    ValueError where transformers has no network that computes the same, and where it is not installed.
    """
    transformers = require("transformers", "--to transformers needs")
    encoder = pretrained.encoder
    model = _model(encoder)
    values = {"architectures": [model.architecture], "model_type": model.kind, "dtype": "float32", **model.settings}
    write_json(folder / CONFIG, values)
    write_json(folder / PREPROCESSOR, preprocessor(pretrained, margin(encoder)))
    write_atomically(folder / "model.safetensors", their_tensors(model, encoder), {"format": "pt"})

    return _compare(transformers, pretrained, images_BCHW, folder)


def their_tensors(model: Model, encoder: Encoder) -> dict[str, Tensor]:
    """The model's tensors by their names. ValueError for a part that the family has not."""
    table = _their_table(model.kind)
    return {_their_name(table, name, encoder): value for name, value in model.tensors.items()}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file of theirs."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _model(encoder: Encoder) -> Model:
    """The network of transformers that computes what the encoder computes. ValueError where there is none."""
    if not isinstance(encoder, VitEncoder):
        raise refusal(encoder, "such a network")
    vit = encoder.vit
    if type(vit) is VisionTransformer:
        check_plain(encoder, Block, vit.blocks)
        return _vit(encoder)
    if type(vit) is Beit:
        check_plain(encoder, BeitBlock, vit.blocks)
        return beit_model(encoder)
    raise refusal(encoder, "rotations of positions in a network of this kind")


def refusal(encoder: Encoder, what: str) -> ValueError:
    """What is raised where transformers has no `what`."""
    return ValueError(f"transformers has no model with {what} ({encoder.config.name!r}); {instead(encoder)}")


def check_plain(encoder: VitEncoder, block: type[nn.Module], blocks: Any) -> None:
    """ValueError for what timm can vary in a block and transformers cannot."""
    first = blocks[0]
    embed = encoder.vit.patch_embed
    if type(first) is not block or type(first.mlp) is not Mlp or not isinstance(first.mlp.norm, nn.Identity):
        raise refusal(encoder, "blocks of its kind")
    if not isinstance(first.mlp.act, nn.GELU) or first.mlp.act.approximate != "none":
        raise refusal(encoder, f"its activation, {first.mlp.act},")
    attention: nn.Module = blocks[0].attn
    parts: dict[str, nn.Module] = dict(attention.named_children())
    norms = [parts.get(name, nn.Identity()) for name in ("norm", "q_norm", "k_norm")]
    if any(not isinstance(norm, nn.Identity) for norm in norms) or "gate" in parts:
        raise refusal(encoder, "norms or gates within attention")
    if not encoder.has_class_token:
        raise refusal(encoder, "no class token")
    if not isinstance(embed.norm, nn.Identity) or embed.proj.bias is None:
        raise refusal(encoder, "its embedding of patches")
    if encoder.patch[0] != encoder.patch[1]:
        raise refusal(encoder, "patches that are not square")


def common_settings(encoder: VitEncoder) -> dict[str, Any]:
    """What config.json of every family says."""
    height, width = encoder.image_size
    first = cast(Any, encoder.vit.blocks[0])
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": "gelu",
        "layer_norm_eps": first.norm1.eps,
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch[0],
        "num_channels": encoder.config.channels,
    }


def _vit(encoder: VitEncoder) -> Model:
    vit = encoder.vit
    if not encoder.config.final_norm or isinstance(vit.norm, nn.Identity):
        raise refusal(encoder, "no norm at its end")
    if not isinstance(vit.norm_pre, nn.Identity):
        raise refusal(encoder, "a norm before its blocks")
    first = vit.blocks[0]
    settings = common_settings(encoder) | {"qkv_bias": first.attn.qkv.bias is not None}
    tensors = positioned(encoder)
    scaled = isinstance(first.ls1, LayerScale)
    if not scaled and vit.reg_token is None:
        width = encoder.width
        # A pooler that does nothing: else transformers makes one at random, and pooler_output means nothing.
        pooler = {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
        settings |= {"intermediate_size": first.mlp.fc1.out_features, "pooler_act": "linear"}
        return Model(kind="vit", architecture="ViTModel", settings=settings, tensors=tensors | pooler)
    if first.mlp.fc1.out_features % encoder.width:
        raise refusal(encoder, "layer scale and an MLP ratio that is no whole number")
    if not scaled:
        ones = {
            f"blocks.{block}.ls{part}.gamma": torch.ones(encoder.width)
            for block in range(encoder.depth)
            for part in (1, 2)
        }
        tensors |= ones
    settings |= {
        "mlp_ratio": first.mlp.fc1.out_features // encoder.width,
        "use_swiglu_ffn": False,
        "use_mask_token": False,
    }
    if vit.reg_token is None:
        return Model(kind="dinov2", architecture="Dinov2Model", settings=settings, tensors=tensors)
    tensors["embeddings.mask_token"] = torch.zeros(1, encoder.width)
    return Model(
        kind="dinov2_with_registers",
        architecture="Dinov2WithRegistersModel",
        settings=settings | {"num_register_tokens": vit.reg_token.shape[1]},
        tensors=tensors,
    )


def positioned(encoder: VitEncoder) -> dict[str, Tensor]:
    """The encoder's tensors with one position each for the class token and all patches, and none for registers."""
    vit, tensors = encoder.vit, _apart(encoder)
    rows, columns = encoder.grid
    position_1LD = tensors.get("pos_embed")
    if position_1LD is None:
        position_1LD = torch.zeros(1, 1 + rows * columns, encoder.width)
    elif vit.no_embed_class:
        position_1LD = torch.cat([torch.zeros(1, 1, encoder.width), position_1LD], dim=1)
    elif encoder.prefix > 1:
        # There registers have no positions of their own: they join the registers.
        registers = slice(1, encoder.prefix)
        tensors["reg_token"] = tensors["reg_token"] + position_1LD[:, registers]
        position_1LD = torch.cat([position_1LD[:, :1], position_1LD[:, encoder.prefix :]], dim=1)
    return tensors | {"pos_embed": position_1LD}


def beit_model(encoder: VitEncoder) -> Model:
    """A BeitModel that computes what timm's Beit computes. ValueError where it cannot."""
    vit, tensors = encoder.vit, _apart(encoder)
    first = vit.blocks[0]
    relative = vit.rel_pos_bias is not None or first.attn.relative_position_bias_table is not None
    if relative and encoder.grid[0] != encoder.grid[1]:
        # Theirs takes the rows of such a table for its columns.
        raise refusal(encoder, "relative positions of images that are not square")
    if first.attn.q_bias is None:
        raise refusal(encoder, "no bias of queries and values beside relative positions")
    settings = common_settings(encoder) | {
        "intermediate_size": first.mlp.fc1.out_features,
        "use_absolute_position_embeddings": vit.pos_embed is not None,
        "use_relative_position_bias": first.attn.relative_position_bias_table is not None,
        "use_shared_relative_position_bias": vit.rel_pos_bias is not None,
        "layer_scale_init_value": 0.0 if first.gamma_1 is None else 0.1,
        "drop_path_rate": 0.0,
        # True would take the norm away from the tokens: there it stands behind the mean.
        "use_mean_pooling": not encoder.config.final_norm,
    }
    if not encoder.config.final_norm:
        tensors |= {
            "pooler.layernorm.weight": torch.ones(encoder.width),
            "pooler.layernorm.bias": torch.zeros(encoder.width),
        }
    return Model(kind="beit", architecture="BeitModel", settings=settings, tensors=tensors)


def _apart(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's tensors with queries, keys and values apart, as transformers has them."""
    tensors, _ = encoder_file(encoder, mean=(), std=(), facts={})
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        before, _, kind = name.rpartition(".")
        if name.endswith("relative_position_index"):
            continue  # they compute it
        if before.endswith("attn.qkv"):
            parts = zip("qkv", value.chunk(3), strict=True)
            found |= {f"{before.removesuffix('qkv')}{part}.{kind}": third.clone() for part, third in parts}
        elif kind in ("q_bias", "v_bias"):
            found[f"{before}.{kind[0]}.bias"] = value
        else:
            found[name] = value
    return found


def _their_table(kind: str) -> NameTable:
    """The table of names from ours to theirs, without the rows of the other families."""
    older = kind in ("vit", "beit")
    return tuple(
        (ours, theirs)
        for theirs, ours in COMMON
        if ours is not None and (older or not any(mark in theirs for mark in _OLDER))
    )


def _their_name(table: NameTable, ours: str, encoder: Encoder) -> str:
    if ours.startswith(("pooler.", "embeddings.")):
        return ours
    try:
        theirs = our_name(table, ours)
    except KeyError as error:
        raise refusal(encoder, f"a part such as {ours}") from error
    assert theirs is not None
    return theirs


def preprocessor(pretrained: PretrainedEncoder, crop_ratio: float) -> dict[str, Any]:
    """Resize, central crop and normalisation as our own evaluations have them; the crop keeps `crop_ratio` of the
    shorter side."""
    height, width = pretrained.encoder.image_size
    values: dict[str, Any] = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pretrained.mean),
        "image_std": list(pretrained.std),
        "do_resize": True,
        "resample": BICUBIC,
        "do_convert_rgb": pretrained.encoder.config.channels == 3,
    }
    if height == width:
        edge = math.ceil(round(height / crop_ratio, 6))
        size = {
            "size": {"shortest_edge": edge},
            "crop_size": {"height": height, "width": width},
            "do_center_crop": True,
        }
        return {"image_processor_type": "BitImageProcessor", **size, **values}
    # Theirs have no crop of another shape than the image's: it is stretched.
    return {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}, **values}


@torch.no_grad()
def _compare(library: Any, pretrained: PretrainedEncoder, images_BCHW: Tensor, folder: Path) -> list[Difference]:
    """Tokens by their model of what their processor makes of the same crops."""
    place = os.fspath(folder)
    with quietly(library):
        model, told = library.AutoModel.from_pretrained(place, trust_remote_code=False, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told[what]:
            # Parts that timm can vary and that are not asked about above.
            raise refusal(
                pretrained.encoder, f"just its parts: {what.replace('_', ' ')} {sorted(map(str, told[what]))[0]}"
            )
    theirs = model.eval()(processed(library, place, images_BCHW)).last_hidden_state
    return [difference("tokens", theirs, tokens_of(pretrained, images_BCHW))]


def processed(library: Any, place: str, images_BCHW: Tensor) -> Tensor:
    """What the image processor of a written folder makes of uint8 images that are cut already."""
    processor = library.AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    # What is stretched or cut twice cannot be compared.
    ready = processor(
        images=list(images_BCHW),
        input_data_format="channels_first",
        do_resize=False,
        do_center_crop=False,
        return_tensors="pt",
    )
    pixels_BCHW: Tensor = ready["pixel_values"]
    return pixels_BCHW


@contextmanager
def quietly(library: Any) -> Iterator[None]:
    """Inside, transformers shows no progress and tells nothing that we check ourselves."""
    logging = library.utils.logging
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
