"""What the contract test must know of each method: one row a method, in the order of METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tiny_tokenizers import tiny_tokenizer
from unmask.methods.base import MethodConfig
from unmask.models.build import build_vit
from unmask.models.co_attention import CoAttentionConfig
from unmask.models.pretrained import encoder_file
from unmask.models.prototypes import PrototypeHeadConfig
from unmask.models.text import TextConfig
from unmask.models.tokenizers.file import tokenizer_file
from unmask.optimisation import OptimizerConfig
from unmask.schedule import Schedule
from unmask.training.checkpoint import write_atomically


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How one method differs from the others in ways that its contract allows."""

    cancelled: frozenset[str] = frozenset()
    """Trainable parameters whose gradient is zero in theory: biases that the next batch norm takes out again."""
    fixed: tuple[str, ...] = ()
    """Ends of the names of parameters that are fixed by design, beside targets and sin-cos positions."""
    has_target: bool = False
    """Whether there is a target network (parameters named target_X, twins of X) that follows by `momentum`."""
    second_view: bool = False
    """Whether the views hold a target image."""
    hides_patches: bool = True
    """Whether the views hold a mask of patches."""
    exported: str = "encoder"
    """Name of the module that is exported."""
    pictures: bool = True
    """Whether it paints patches or places them."""
    fall: float = 0.85
    """Share of its first value to which every loss falls in 30 steps on so many emoji."""
    may_rise: frozenset[str] = frozenset()
    """Losses that are held at a level by others rather than lowered (a term for entropy), with the reason beside."""
    decays_all: bool = False
    """Whether biases and norms are decayed like all else."""
    decays_norms: bool = False
    """Whether some norms' weights are decayed, though no biases."""
    lr: float = 2e-3
    """Learning rate of those steps."""
    images: int = 32
    """How many emoji; more where so few are learnt too slowly."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the tiny configuration that shrinking alone does not make small."""
    prepare: Callable[[MethodConfig, Path], MethodConfig] | None = None
    """What must be made beforehand in a folder (a tokenizer, a teacher), and the configuration that names it."""


def with_tokenizer(config: MethodConfig, things: Path) -> MethodConfig:
    """The configuration with a tiny random tokenizer for its channels."""
    path = things / f"tokenizer-{config.encoder.channels}.safetensors"
    if not path.exists():
        write_atomically(path, *tokenizer_file(tiny_tokenizer("vq", config.encoder.channels), {}))
    return replace(config, tokenizer=str(path))  # type: ignore[call-arg]


def with_wide_stages(config: MethodConfig, folder: Path) -> MethodConfig:
    """The configuration with stages of convolutions nearly as wide as the ViT blocks behind them."""
    return replace(config, encoder=replace(config.encoder, stage_widths=(32, 48)))


def with_teacher(config: MethodConfig, things: Path) -> MethodConfig:
    """The configuration with a tiny random teacher: another network than the student, with stochastic depth."""
    ours = replace(config.encoder, width=36, heads=2, depth=3, drop_path=0.5, position="learned")
    path = things / f"teacher-{ours.channels}-{ours.image_height}x{ours.image_width}.safetensors"
    if not path.exists():
        mean, std = (0.4,) * ours.channels, (0.2,) * ours.channels
        encoder = build_vit(ours, mask_token=False)
        with torch.no_grad():  # a random network attends to everything alike
            encoder.vit.blocks[-1].attn.qkv.weight.mul_(10)
        write_atomically(path, *encoder_file(encoder, mean=mean, std=std, facts={}))
    return replace(config, teacher=str(path))  # type: ignore[call-arg]


# A target that follows fast enough to change in thirty steps.
FAST = Schedule(start=0.9)
TINY_PROTOTYPES = PrototypeHeadConfig(hidden=64, bottleneck=32, out=64, norm="batch")

FACTS: dict[str, Facts] = {
    # The final norm's bias moves all tokens alike, and the projector has no bias before its batch norm.
    "conmim": Facts(
        cancelled=frozenset({"encoder.vit.norm.bias"}),
        has_target=True,
        second_view=True,
        exported="target_encoder",
    ),
    # Biases before the heads' batch norms, and what only adds a constant to the decoded mean feature.
    "cmae": Facts(
        cancelled=frozenset(
            {
                "feature_decoder.norm.bias",
                "feature_decoder.head.bias",
                "projector.layers.0.bias",
                "predictor.layers.0.bias",
            }
        ),
        has_target=True,
        second_view=True,
    ),
    "mae": Facts(),
    "simmim": Facts(),
    "data2vec": Facts(has_target=True),
    "maskfeat": Facts(pictures=False),
    # The weight of the feature loss rises with progress; here it is at its height from the start.
    "bootmae": Facts(
        has_target=True,
        changes={"feature_weight": Schedule(start=1.0)},
    ),
    "dmae": Facts(),
    "supmae": Facts(
        cancelled=frozenset({"classifier.layers.0.bias"}),
        changes={"classes": 3, "class_hidden": 256, "class_temperature": 1.0, "class_weight": 1.0},
    ),
    "convmae": Facts(prepare=with_wide_stages, lr=1e-3),
    "beit": Facts(prepare=with_tokenizer, pictures=False),
    # A bias of all keys alike changes no attention.
    "cae": Facts(
        cancelled=frozenset(f"regressor.blocks.{block}.norm_k.bias" for block in range(4)),
        prepare=with_tokenizer,
        pictures=False,
    ),
    "beit_v2": Facts(prepare=with_tokenizer, pictures=False),
    # A random tokenizer is sure of nothing: its distributions must be sharpened for a loss that has room to fall.
    "mc_beit": Facts(prepare=with_tokenizer, pictures=False, changes={"temperature": 0.02}),
    "peco": Facts(prepare=with_tokenizer, pictures=False),
    "igpt": Facts(hides_patches=False, lr=5e-3),
    # A constant added to the class feature, and the heads' biases, are taken out by the batch norm behind them.
    "simclr": Facts(
        cancelled=frozenset({"encoder.vit.norm.bias"}),
        second_view=True,
        hides_patches=False,
        pictures=False,
        lr=5e-4,
        fall=0.95,
    ),
    "mocov3": Facts(
        cancelled=frozenset({"encoder.vit.norm.bias"}),
        fixed=("patch_embed.proj.weight", "patch_embed.proj.bias"),
        has_target=True,
        second_view=True,
        hides_patches=False,
        pictures=False,
        decays_all=True,
        lr=5e-4,
        fall=0.95,
    ),
    "byol": Facts(
        cancelled=frozenset({"encoder.vit.norm.bias", "projector.layers.0.bias", "predictor.layers.0.bias"}),
        has_target=True,
        second_view=True,
        hides_patches=False,
        pictures=False,
    ),
    "simsiam": Facts(
        cancelled=frozenset({"encoder.vit.norm.bias"}),
        fixed=("projector.layers.6.bias",),
        second_view=True,
        hides_patches=False,
        pictures=False,
        decays_all=True,
        lr=0.05,
    ),
    "mixmask": Facts(
        has_target=True,
        second_view=True,
        hides_patches=False,
        pictures=False,
        decays_all=True,
        # A tiny ViT learns nothing by SGD at the rate of a ResNet.
        changes={"queue": 64, "optimizer": OptimizerConfig()},
        # The queue begins with random directions, from which a key is easily told; test_mixmask.py fills it.
        may_rise=frozenset({"contrast", "mask"}),
        lr=5e-4,
    ),
    # UniGrad's negative term only keeps predictions from collapsing; it grows while they become like the targets.
    "sim": Facts(
        fixed=("patch_embed.proj.weight", "patch_embed.proj.bias"),
        has_target=True,
        second_view=True,
        pictures=False,
        may_rise=frozenset({"negative"}),
    ),
    # A constant added to all keys changes no attention.
    "extrema": Facts(
        cancelled=frozenset(f"class_attention.blocks.{block}.attn.k.bias" for block in range(2)),
        has_target=True,
        second_view=True,
        hides_patches=False,
        pictures=False,
    ),
    # The contrast starts near its chance level, ln 127, and is a small part of the whole.
    "can": Facts(second_view=True, fall=0.9),
    # The cross-entropy of attention cannot fall below the entropy of the teacher's.
    "tec": Facts(pictures=False, fall=0.97, prepare=with_teacher),
    "splitmask": Facts(hides_patches=False, pictures=False, changes={"vocabulary": 64}),
    "cim": Facts(
        changes={"generator_width": 48, "generator_depth": 2, "generator_heads": 3},
        prepare=with_tokenizer,
    ),
    # Images that the decoder makes keep the noise of their pixels, which nobody can learn.
    "mim": Facts(hides_patches=False, may_rise=frozenset({"decoding"})),
    # Without batch norm a head this narrow starts with outputs that its biases swamp; a centre that starts at zero
    # makes the first loss small.
    "dino": Facts(
        cancelled=frozenset({"encoder.vit.norm.bias", "head.mlp.layers.0.bias", "head.mlp.layers.3.bias"}),
        fixed=("weight_g",),
        has_target=True,
        second_view=True,
        hides_patches=False,
        pictures=False,
        exported="target_encoder",
        changes={"head": replace(TINY_PROTOTYPES, fixed_length=True), "momentum": FAST, "local_crops": 2},
    ),
    "ibot": Facts(
        cancelled=frozenset({"encoder.vit.norm.bias", "head.mlp.layers.0.bias", "head.mlp.layers.3.bias"}),
        has_target=True,
        second_view=True,
        pictures=False,
        exported="target_encoder",
        fall=0.95,
        images=64,
        changes={"head": TINY_PROTOTYPES, "momentum": FAST, "local_crops": 2},
    ),
    # Biases before the head's batch norms; prototypes are used alike from the start.
    "msn": Facts(
        cancelled=frozenset({"encoder.vit.norm.bias", "head.layers.0.bias", "head.layers.3.bias"}),
        has_target=True,
        second_view=True,
        pictures=False,
        exported="target_encoder",
        may_rise=frozenset({"me_max"}),
        changes={"prototypes": 64, "local_crops": 2},
    ),
    # A bias of all keys alike changes no attention. Half of what matching is asked can only be learnt slowly.
    "m3ae": Facts(
        cancelled=frozenset(
            {f"text.network.encoder.layer.{layer}.attention.self.key.bias" for layer in range(2)}
            | {
                f"fusion.{stream}_layers.{layer}.{attention}_attention.key.bias"
                for stream in ("text", "image")
                for layer in range(3)
                for attention in ("self", "cross")
            }
        ),
        decays_norms=True,
        may_rise=frozenset({"itm"}),
        lr=1e-3,
        changes={
            "text": TextConfig(width=24, depth=2, heads=2, length=32, merges="Ġ t\nh i\nn g"),
            "fusion": CoAttentionConfig(width=32, depth=3, heads=4),
            "decoded_layer": 1,
            "dropout": 0.0,
        },
    ),
}
