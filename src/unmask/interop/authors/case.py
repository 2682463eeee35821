"""What a golden case is in our terms, and the parts of reading one that methods share.

Shape legend: B samples, C channels, H x W pixels, N patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unmask.interop.authors.names import NameTable
from unmask.methods.base import IMAGENET_MEAN, IMAGENET_STD, Method
from unmask.models.encoder_config import EncoderConfig
from unmask.optimisation import OptimizerConfig
from unmask.views import Views, normalise, to_float

Json = dict[str, Any]
Tensors = dict[str, Tensor]
LossSource = str | Callable[[Json, Tensors, int], float]


@dataclass(frozen=True, kw_only=True)
class Authors:
    """How to read the golden cases and checkpoints of one method's authors."""

    names: NameTable
    """Online and target networks: the authors' names to ours."""
    target_names: NameTable
    """Names in a table of the target alone ("final_teacher_norms"); empty where the method has none."""
    build: Callable[[Json], Method]
    """The method of a case, with all its hyper-parameters."""
    views: Callable[[Json, Tensors, int], Any]
    """Recorded inputs of a step, in float64."""
    losses: dict[str, LossSource]
    """Our name of a loss to the name of the recorded tensor, or to what ours must be at a step where theirs is recorded
    with another weight."""
    total: LossSource = "losses"
    """Recorded name of the sum of all losses, which is compared where it is recorded; or what it must be."""
    convert: Callable[[Json, str, Tensor], Tensor] | None = None
    """Change of layout of a parameter, by the authors' name, where ours differs."""
    predictions: dict[str, Callable[[Any, Any], Tensor]] = field(default_factory=dict)
    """Recorded name to what it holds: something the method computes from the first step's views before any update."""
    schedules: dict[str, str] = field(default_factory=lambda: {"momentum": "momentum"})
    """Our configuration's Schedule to the recorded value of each step (tensor, or list in the JSON)."""
    states: dict[str, str] = field(default_factory=dict)
    """Recorded name to our parameter or buffer: its value after each step ([steps, ...]) or after the last one."""
    total_steps: Callable[[Json], int] | None = None
    """Steps of the whole run that a case is the start of, where not all are recorded: progress is by these."""


def mean_and_std(case: Json) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A case's normalisation; ImageNet's where it names none."""
    recorded = case["normalisation"] if isinstance(case.get("normalisation"), dict) else case
    return tuple(recorded.get("mean", IMAGENET_MEAN)), tuple(recorded.get("std", IMAGENET_STD))


def image_views(case: Json, tensors: Tensors, step: int) -> Views:
    """Views of a step from `images`, `images_target` (where recorded) and `masks`."""
    mean, std = mean_and_std(case)

    def view(name: str) -> Tensor:
        return normalise(to_float(tensors[name][step], dtype=torch.float64), mean, std)

    return Views(
        online=view("images"),
        target=view("images_target") if "images_target" in tensors else None,
        mask_BN=tensors["masks"][step].bool(),
    )


def two_image_views(case: Json, tensors: Tensors, step: int) -> Views:
    """Views of a step from `images_1` and `images_2`."""
    mean, std = mean_and_std(case)
    first, second = (
        normalise(to_float(tensors[name][step], dtype=torch.float64), mean, std) for name in ("images_1", "images_2")
    )
    return Views(online=first, target=second)


def encoder_config(case: Json, **changes: Any) -> EncoderConfig:
    """The encoder of a case: a plain ViT of the recorded size."""
    image = case["image"]
    height, width = image if isinstance(image, list) else (image, image)
    return EncoderConfig(
        name="vit_base_patch16_224",
        image_height=height,
        image_width=width,
        patch_size=case["patch"],
        width=case["embed_dim"],
        depth=case["depth"],
        heads=case["heads"],
        mlp_ratio=case.get("mlp_ratio", 4),
        drop_path=case.get("drop_path", 0.0),
        **changes,
    )


def optimizer_config(case: Json) -> OptimizerConfig:
    """The optimizer as recorded; the learning rate (and a scheduled weight decay) of each step is read apart."""
    return OptimizerConfig(
        kind="sgd" if case.get("optimizer") == "SGD" else "adamw",
        lr=0.0,
        lr_batch=None,
        betas=tuple(case.get("betas", (0.9, 0.999))),
        eps=case.get("eps", 1e-8),
        sgd_momentum=case.get("sgd_momentum", 0.9),
        weight_decay=0.0 if isinstance(case["weight_decay"], list) else case["weight_decay"],
        clip=case.get("clip", case.get("clip_grad_norm")),
        clip_each=str(case.get("clip_kind", "")).startswith("per parameter"),
    )


def per_step(case: Json, tensors: Tensors, name: str, steps: int) -> list[float] | None:
    """A quantity of every step: recorded as a tensor, as a list in the JSON, or as one constant; None if absent."""
    if name in tensors:
        return [float(value) for value in tensors[name]]
    recorded = case.get(f"{name}_per_step", case.get(name))
    if recorded is None:
        return None
    if isinstance(recorded, list):
        return [float(value) for value in recorded]
    return [float(recorded)] * steps
