"""DINO as facebookresearch/dino names and records it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.interop.authors.case import (
    Authors,
    Json,
    Tensors,
    encoder_config,
    mean_and_std,
    optimizer_config,
)
from unmask.methods.dino import DINO, DINOConfig
from unmask.methods.multi_crop import MultiCropViews
from unmask.models.prototypes import PrototypeHeadConfig
from unmask.views import normalise, to_float

_NETWORKS = (("student.", ""), ("teacher.", "target_"), ("", ""))

NAMES = (
    ("dino_loss.center", "centre"),
    *(
        pair
        for theirs, ours in _NETWORKS
        for pair in (
            (f"{theirs}backbone.*", f"{ours}encoder.vit.*"),
            (f"{theirs}head.mlp.weight", f"{ours}head.mlp.layers.0.weight"),
            (f"{theirs}head.mlp.bias", f"{ours}head.mlp.layers.0.bias"),
            (f"{theirs}head.mlp.*", f"{ours}head.mlp.layers.*"),
            (f"{theirs}head.last_layer.*", f"{ours}head.last.*"),
        )
    ),
)


def crops(case: Json, tensors: Tensors, name: str, step: int) -> list[Tensor]:
    """The recorded crops of a step whose tensors are called `name` and a number, in that order."""
    mean, std = mean_and_std(case)
    keys = sorted((key for key in tensors if key.removeprefix(name).isdigit()), key=lambda key: int(key[len(name) :]))
    return [normalise(to_float(tensors[key][step], dtype=torch.float64), mean, std) for key in keys]


def multi_crop_fields(case: Json, tensors: Tensors, step: int) -> dict[str, Any]:
    """Both large crops and the small ones, by the names of `MultiCropViews`."""
    online, target = crops(case, tensors, "images_g", step)
    local = crops(case, tensors, "images_l", step)
    return {"online": online, "target": target, "local": torch.stack(local) if local else None}


def shared_settings(case: Json) -> dict[str, Any]:
    """What DINO and iBOT are set to in the same words."""
    mean, std = mean_and_std(case)
    return {
        "local_crops": case["local_crops"],
        "local_side": case["local_image"] / case["image"] if case["local_crops"] else 1.0,
        "temperature": case["student_temp"],
        "centre_momentum": case["center_momentum"],
        "freeze_last": case["freeze_last_layer_epochs"] / case["epochs"],
        "mean": mean,
        "std": std,
        "optimizer": optimizer_config(case),
    }


def run_steps(case: Json) -> int:
    """Steps of the whole run, by which the share of frozen epochs is counted."""
    return int(case["epochs"] * case["iters_per_epoch"])


def build(case: Json) -> DINO:
    """The method of a case, with all its hyper-parameters."""
    head = case["head"]
    return DINO(
        DINOConfig(
            encoder=encoder_config(case, position="learned", position_resize="offset"),
            head=PrototypeHeadConfig(
                layers=head["layers"],
                hidden=head["hidden"],
                bottleneck=head["bottleneck"],
                out=head["out"],
                norm="batch" if head["use_bn"] else "none",
                fixed_length=head["norm_last_layer"],
            ),
            **shared_settings(case),
        )
    )


def views(case: Json, tensors: Tensors, step: int) -> MultiCropViews:
    """Both large crops and the small ones."""
    return MultiCropViews(**multi_crop_fields(case, tensors, step))


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=views,
    losses={"assignment": "losses"},
    predictions={
        "student_output_first": lambda method, views: method.logits(views)[0].flatten(0, 1),
        "teacher_output_first": lambda method, views: method.logits(views)[1].flatten(0, 1),
    },
    schedules={"momentum": "momentum", "target_temperature": "teacher_temp"},
    states={"centers": "centre"},
    total_steps=run_steps,
)
