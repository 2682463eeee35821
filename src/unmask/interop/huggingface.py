"""Encoders in the layout of Hugging Face transformers: `config.json` beside one or several files of weights.

Both are read here, without that library and without running code. Names are turned into timm's; queries, keys and
values, which are apart there, are joined.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.errors import in_short
from unmask.interop.authors.names import NameTable, our_name
from unmask.interop.checkpoint_file import read_leaves
from unmask.interop.found import Found, Hints
from unmask.models.model_file import WRONG_VALUES

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
NORM_EPS = 1e-6
"""What timm and the authors of all these networks add to variances."""
_LAYER = "encoder.layer.*"

COMMON: NameTable = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    *(
        (f"{_LAYER}.attention.attention.{theirs}.*", f"blocks.*.attn.{ours}.*")
        for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v"))
    ),
    (
        f"{_LAYER}.attention.attention.relative_position_bias.relative_position_bias_table",
        "blocks.*.attn.relative_position_bias_table",
    ),
    ("encoder.relative_position_bias.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"),
    (f"{_LAYER}.attention.output.dense.*", "blocks.*.attn.proj.*"),
    (f"{_LAYER}.intermediate.dense.*", "blocks.*.mlp.fc1.*"),
    (f"{_LAYER}.output.dense.*", "blocks.*.mlp.fc2.*"),
    (f"{_LAYER}.mlp.*", "blocks.*.mlp.*"),
    (f"{_LAYER}.layernorm_before.*", "blocks.*.norm1.*"),
    (f"{_LAYER}.layernorm_after.*", "blocks.*.norm2.*"),
    (f"{_LAYER}.norm*", "blocks.*.norm*"),
    (f"{_LAYER}.layer_scale*.lambda1", "blocks.*.ls*.gamma"),
    (f"{_LAYER}.lambda_*", "blocks.*.gamma_*"),
    ("layernorm.*", "norm.*"),
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One of transformers' families of networks."""

    prefix: str
    """Before the encoder's names where a head stands around it."""
    beit: bool = False
    """Whether its attention is BEiT's: no bias of keys, tables of relative positions."""


FAMILIES = {
    "vit": Family(prefix="vit."),
    "vit_mae": Family(prefix="vit."),
    "vit_msn": Family(prefix="vit."),
    "beit": Family(prefix="beit.", beit=True),
    "data2vec-vision": Family(prefix="data2vec_vision.", beit=True),
    "dinov2": Family(prefix="dinov2."),
    "dinov2_with_registers": Family(prefix="dinov2_with_registers."),
}
"""By `model_type` in config.json."""


def read_transformers(path: Path) -> Found:
    """The encoder in a folder, or in a file of weights with config.json beside it. ValueError with one sentence."""
    folder = path if path.is_dir() else path.parent
    config = _json(folder / CONFIG)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"{folder / CONFIG} is of model type {in_short(kind)}; known are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    leaves = {".".join(place): value for file in _weights(path) for place, value in read_leaves(file).items()}
    found = Found()
    try:
        _check(config, folder / CONFIG)
        found.hints = Hints(heads=int(config["num_attention_heads"]), grid=_grid(config))
        _normalisation(folder, found)
    except WRONG_VALUES as error:
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"{folder / CONFIG} lacks or damages {in_short(str(error))}") from error
    _sort(leaves, family, found)
    _join_attention(found, family)
    if "reg_token" in found.tensors:
        _positions_without_class(found)
    eps = config.get("layer_norm_eps", NORM_EPS)
    if isinstance(eps, float) and eps != NORM_EPS:
        found.notes.append(
            f"norms add {NORM_EPS:g} to variances, as in the authors' code and in timm; this config.json says {eps:g}"
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {(error.strerror or 'error').lower()}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object")
    return values


def _weights(path: Path) -> list[Path]:
    """The files of weights: the one given, or what lies in the folder."""
    if not path.is_dir():
        return [path]
    for name in WEIGHTS:
        if (path / name).exists():
            return [path / name]
    for name in INDICES:
        if (path / name).exists():
            table = _json(path / name).get("weight_map")
            if not isinstance(table, dict) or not all(isinstance(part, str) for part in table.values()):
                raise ValueError(f"{path / name} has no table of files")
            parts = sorted(set(table.values()))
            # A name from a file of others must not lead out of its folder.
            outside = [part for part in parts if Path(part).name != part]
            if outside:
                raise ValueError(f"{path / name} names a file outside of its folder: {in_short(outside[0])}")
            return [path / part for part in parts]
    raise ValueError(f"{path} holds no weights ({', '.join((*WEIGHTS, *INDICES))})")


def _check(config: Mapping[str, Any], path: Path) -> None:
    """ValueError for what our encoders cannot do."""
    act = config.get("hidden_act", "gelu")
    if act != "gelu":
        raise ValueError(f"{path} has the activation {in_short(act)}, but only gelu is known here")
    if config.get("use_swiglu_ffn"):
        raise ValueError(
            f"{path} has gated MLPs (SwiGLU), which are not supported; take timm's weights of this network"
        )


def _pair(value: Any) -> tuple[int, int]:
    rows, columns = value if isinstance(value, list) else (value, value)
    return int(rows), int(columns)


def _grid(config: Mapping[str, Any]) -> tuple[int, int]:
    (height, width), (ph, pw) = _pair(config["image_size"]), _pair(config["patch_size"])
    if min(ph, pw) < 1 or height < ph or width < pw:
        raise ValueError(f"images of {height}x{width} pixels have no patches of {ph}x{pw}")
    return height // ph, width // pw


def _normalisation(folder: Path, found: Found) -> None:
    if not (folder / PREPROCESSOR).exists():
        found.notes.append(f"there is no {PREPROCESSOR}: ImageNet's mean and deviation are taken")
        return
    values = _json(folder / PREPROCESSOR)
    if "image_mean" in values and "image_std" in values:
        found.mean = tuple(float(value) for value in values["image_mean"])
        found.std = tuple(float(value) for value in values["image_std"])


def _sort(leaves: Mapping[str, Tensor], family: Family, found: Found) -> None:
    """Everything under our names, or left out with a reason."""
    headed = any(name.startswith(family.prefix) for name in leaves)
    for theirs, value in leaves.items():
        inside = theirs.removeprefix(family.prefix)
        if headed and inside == theirs and not theirs.startswith("layernorm."):
            found.left_out[theirs] = f"{theirs.partition('.')[0]}, around the encoder"
        elif inside.startswith("pooler."):
            found.left_out[theirs] = "pooler, after the encoder"
        elif inside == "embeddings.mask_token":
            found.left_out[theirs] = "mask token, which only pre-training needs"
        elif inside.endswith("relative_position_index"):
            found.left_out[theirs] = "computed, not learnt"
        else:
            try:
                ours = our_name(COMMON, inside)
            except KeyError:
                ours = None
            if ours is None:
                found.left_out[theirs] = "not in the table of this family's names"
            else:
                found.put(ours, value, theirs)


def _join_attention(found: Found, family: Family) -> None:
    """One weight, and one bias, of queries, keys and values; BEiT's biases of queries and values stay apart."""
    for block in {name.split(".")[1] for name in found.tensors if name.endswith(".attn.q.weight")}:
        before = f"blocks.{block}.attn"
        if family.beit:
            for part in ("q", "v"):
                if f"{before}.{part}.bias" in found.tensors:
                    _rename(found, f"{before}.{part}.bias", f"{before}.{part}_bias")
        for kind in ("weight", "bias"):
            parts = [f"{before}.{part}.{kind}" for part in "qkv"]
            if all(part in found.tensors for part in parts):
                joined = torch.cat([found.tensors.pop(part) for part in parts])
                theirs = [name for part in parts for name in found.sources.pop(part)]
                found.put(f"{before}.qkv.{kind}", joined, *theirs)
                found.change(f"{before}.qkv.{kind}", "queries, keys and values joined")


def _rename(found: Found, old: str, new: str) -> None:
    found.put(new, found.tensors.pop(old), *found.sources.pop(old))


def _positions_without_class(found: Found) -> None:
    """timm's networks with registers have the class token's position within the class token."""
    position_1LD, theirs = found.tensors["pos_embed"], found.sources["pos_embed"]
    found.tensors["cls_token"] = found.tensors["cls_token"] + position_1LD[:, :1]
    found.sources["cls_token"] += theirs
    found.tensors["pos_embed"] = position_1LD[:, 1:]
    found.change("cls_token", "its position added")
    found.change("pos_embed", "without the class token's, which is added to that")
