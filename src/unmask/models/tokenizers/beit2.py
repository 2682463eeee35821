"""The released VQ-KD tokenizers of BEiT v2, from the authors' own files.

Their codebook holds no measure of its spread (see codebook.py), which only the soft targets of mc-BEiT need. It is
taken from the distances between neighbouring codes: a feature halfway between two codes has half their distance.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.model_file import filled
from unmask.models.tokenizers.codebook import CodebookConfig
from unmask.models.tokenizers.vqkd import VQKD, VQKDConfig

MARK = "quantize.embedding.weight"
HEAD_WIDTH = 64  # of all their ViTs; no weight tells it
# Of the teacher and of their statistics nothing is needed to name tokens.
IGNORED = ("teacher", "scaling", "loss", "quantize.cluster_size", "quantize.embedding.")


def from_beit2(state: dict[str, Tensor]) -> VQKD:
    """The tokenizer whose weights have the names of BEiT v2's `modeling_vqkd.py`; its sizes are read from their shapes.

    ValueError, KeyError or RuntimeError where names or shapes are not those of such a tokenizer.
    """
    width, channels, patch, _ = state["encoder.patch_embed.proj.weight"].shape
    codes_VD = torch.nn.functional.normalize(state[MARK].float(), dim=-1)
    side = round((state["encoder.pos_embed"].shape[1] - 1) ** 0.5)
    config = VQKDConfig(
        vocabulary=codes_VD.shape[0],
        channels=channels,
        encoder=EncoderConfig(
            name="vit_base_patch16_224",
            image_height=side * patch,
            image_width=side * patch,
            patch_size=patch,
            channels=channels,
            width=width,
            depth=_depth(state, "encoder"),
            heads=max(1, width // HEAD_WIDTH),
            mlp_ratio=state["encoder.blocks.0.mlp.fc1.weight"].shape[0] / width,
        ),
        decoder_depth=_depth(state, "decoder"),
        codebook=CodebookConfig(width=codes_VD.shape[1], restart_after=0),
        teacher_width=state["decode_task_layer.2.weight"].shape[0],
    )
    used: set[str] = set()

    def fill(tokenizer: VQKD) -> None:
        for part, network in (("encoder", tokenizer.encoder), ("decoder", tokenizer.decoder)):
            assert isinstance(network, Encoder)
            network.network.load_state_dict(_timm_names(state, part, used))
        layers = (("encode_task_layer", tokenizer.encode_task), ("decode_task_layer", tokenizer.decode_task))
        for part, module in layers:
            module.load_state_dict(_under(state, part, used))

    tokenizer = filled(lambda: VQKD(config), fill)
    tokenizer.codebook.codes_VD.copy_(codes_VD)
    tokenizer.codebook.spread.copy_(_spread_of(codes_VD))
    tokenizer.codebook.started.fill_(True)
    rest = [name for name in state if name not in used and not name.startswith(IGNORED)]
    if rest:
        raise ValueError(f"{rest[0]!r} is not part of a VQ-KD tokenizer")
    return tokenizer


def _depth(state: dict[str, Tensor], part: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(rf"{part}\.blocks\.(\d+)\.", name)))


def _under(state: dict[str, Tensor], part: str, used: set[str]) -> dict[str, Tensor]:
    """The tensors below `part`, which are noted in `used`."""
    names = [name for name in state if name.startswith(f"{part}.")]
    used.update(names)
    return {name.removeprefix(f"{part}."): state[name].float() for name in names}


def _timm_names(state: dict[str, Tensor], part: str, used: set[str]) -> dict[str, Tensor]:
    """Their ViT's weights by timm's names: keys have no bias, and the final norm is called fc_norm."""
    renamed = {}
    for name, value in _under(state, part, used).items():
        if name.endswith("attn.q_bias"):
            owner = name.removesuffix("q_bias")
            value_bias = state[f"{part}.{owner}v_bias"].float()
            renamed[f"{owner}qkv.bias"] = torch.cat([value, torch.zeros_like(value), value_bias])
        elif not name.endswith("attn.v_bias"):
            renamed[re.sub(r"^fc_norm\.", "norm.", name)] = value
    return renamed


def _spread_of(codes_VD: Tensor) -> Tensor:
    """Squared error of a coordinate for features halfway between neighbouring codes."""
    nearest = []
    for start in range(0, len(codes_VD), 1024):
        cosine = codes_VD[start : start + 1024] @ codes_VD.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -1.0
        nearest.append(cosine.amax(dim=1))
    squared = 2 * (1 - torch.cat(nearest)).mean()
    return (squared / 4 / codes_VD.shape[1]).clamp_min(1e-6)
