"""ExtreMA as microsoft/ExtreMA names and records it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unmask.interop.authors.case import (
    Authors,
    Json,
    Tensors,
    encoder_config,
    mean_and_std,
    optimizer_config,
    two_image_views,
)
from unmask.methods.base import Method
from unmask.methods.extrema import PREDICTOR, PROJECTOR, ExtreMA, ExtreMAConfig, MultiMaskViews

NAMES = (
    ("predictor.*", "predictor.layers.*"),
    *(
        pair
        for theirs, ours in (("base_encoder", ""), ("momentum_encoder", "target_"))
        for pair in (
            (f"{theirs}.cls_token", f"{ours}class_attention.class_token"),
            (f"{theirs}.blocks_token.*", f"{ours}class_attention.blocks.*"),
            (f"{theirs}.head.*", f"{ours}projector.layers.*"),
            (f"{theirs}.*", f"{ours}encoder.vit.*"),
        )
    ),
)


def build(case: Json) -> ExtreMA:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    return ExtreMA(
        ExtreMAConfig(
            encoder=encoder_config(case, class_token=False, position="sincos", init="xavier"),
            masks=case["num_masks"],
            mask_ratio=case["mask_ratio"],
            class_blocks=case["class_attention_layers"],
            class_layer_scale=case["class_attention_layer_scale"],
            projector=replace(PROJECTOR, hidden=case["mlp_dim"], out=case["proj_dim"]),
            predictor=replace(PREDICTOR, hidden=case["mlp_dim"], out=case["proj_dim"]),
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def views(case: Json, tensors: Tensors, step: int) -> MultiMaskViews:
    """Recorded inputs of a step."""
    both = two_image_views(case, tensors, step)
    return MultiMaskViews(online=both.online, target=both.target, masks_BKN=tensors["masks"][step].bool())


def predict(method: Method, views: MultiMaskViews) -> Tensor:
    """The predictions of all masks, mask by mask."""
    assert isinstance(method, ExtreMA)
    found: list[Tensor] = []
    method.predictor.register_forward_hook(lambda _, __, prediction_ME: found.append(prediction_ME))
    method.losses(views)
    return found[0]


@torch.no_grad()
def target(method: Method, views: MultiMaskViews) -> Tensor:
    """The target's projected features."""
    assert isinstance(method, ExtreMA)
    assert views.target is not None
    return method.target_projector(method.class_feature(views.target))


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=views,
    losses={"cosine": "losses"},
    predictions={"pred_first": predict, "target_first": target},
)
