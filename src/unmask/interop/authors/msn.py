"""MSN as facebookresearch/msn names and records it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unmask.interop.authors.case import Authors, Json, Tensors, encoder_config, mean_and_std, optimizer_config
from unmask.interop.authors.dino import crops
from unmask.masking import MaskConfig
from unmask.methods.msn import MSN, MSNConfig
from unmask.methods.multi_crop import MultiCropViews
from unmask.models.heads import MLPHeadConfig

NAMES = (
    ("prototypes", "prototypes.weight"),
    *(
        pair
        for prefix in ("", "target_")
        for pair in (
            (f"{prefix}encoder.fc.fc1.*", f"{prefix}head.layers.0.*"),
            (f"{prefix}encoder.fc.bn1.*", f"{prefix}head.layers.1.*"),
            (f"{prefix}encoder.fc.fc2.*", f"{prefix}head.layers.3.*"),
            (f"{prefix}encoder.fc.bn2.*", f"{prefix}head.layers.4.*"),
            (f"{prefix}encoder.fc.fc3.*", f"{prefix}head.layers.6.*"),
            (f"{prefix}encoder.*", f"{prefix}encoder.vit.*"),
        )
    ),
)


def build(case: Json) -> MSN:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    weights = case["loss_weights"]
    if weights["msn"] != 1:
        raise ValueError(f"the assignment has weight 1, not {weights['msn']}")
    return MSN(
        MSNConfig(
            encoder=encoder_config(case, position="learned", position_resize="scale"),
            mask=MaskConfig(kind="random", ratio=case["patch_drop"]),
            masked_crops=case["rand_views"],
            local_crops=case["focal_views"],
            local_side=case["focal_image"] / case["image"] if case["focal_views"] else 1.0,
            head=MLPHeadConfig(
                hidden=case["head_hidden"],
                out=case["head_out"],
                layers=3,
                activation="gelu",
                hidden_bias=True,
                out_bias=True,
            ),
            prototypes=case["prototypes"],
            temperature=case["temperature"],
            sinkhorn_iterations=case["sinkhorn_iterations"] if case["use_sinkhorn"] else 0,
            me_max_weight=weights["me_max"],
            entropy_weight=weights["entropy"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def views(case: Json, tensors: Tensors, step: int) -> MultiCropViews:
    """The target's crop, the masked ones and the small ones."""
    (target,) = crops(case, {"images_target1": tensors["images_target"]}, "images_target", step)
    online, *more = crops(case, tensors, "images_rand", step)
    local = crops(case, tensors, "images_focal", step)
    return MultiCropViews(
        online=online,
        target=target,
        mask_BN=tensors["masks"][step].bool().expand(len(online), -1),
        more=torch.stack(more) if more else None,
        local=torch.stack(local) if local else None,
    )


def weighted(recorded: str, weight: str) -> Callable[[Json, Tensors, int], float]:
    """Their terms are recorded without the weight with which they enter the sum."""
    return lambda case, tensors, step: float(case["loss_weights"][weight]) * float(tensors[recorded][step])


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=views,
    losses={"assignment": "losses_msn", "me_max": weighted("losses_me_max", "me_max")},
    predictions={
        "anchor_views_first": lambda method, views: method.anchors(views).flatten(0, 1),
        "target_views_first": lambda method, views: method.project_target(views),
        "targets_first": lambda method, views: method.targets(views, 0.0),
    },
    schedules={"momentum": "momentum", "sharpening": "sharpen_T"},
)
