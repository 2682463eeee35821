"""iBOT as bytedance/ibot names and records it."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.interop.authors.case import Authors, Json, Tensors, encoder_config
from unmask.interop.authors.dino import multi_crop_fields, run_steps, shared_settings
from unmask.masking import VaryingMaskConfig
from unmask.methods.ibot import IBOT, IBOTConfig, IBOTViews
from unmask.methods.siamese import image_feature
from unmask.models.prototypes import PrototypeHeadConfig

_NETWORKS = (("student.", ""), ("teacher.", "target_"), ("", ""))
_NORMS = {None: "none", "bn": "batch", "syncbn": "batch", "ln": "layer"}

NAMES = (
    ("ibot_loss.center", "centre"),
    ("ibot_loss.center2", "patch_centre"),
    *(
        pair
        for theirs, ours in _NETWORKS
        for pair in (
            (f"{theirs}backbone.masked_embed", f"{ours}encoder.mask_token"),
            (f"{theirs}backbone.blocks.*.gamma_*", f"{ours}encoder.vit.blocks.*.ls*.gamma"),
            (f"{theirs}backbone.*", f"{ours}encoder.vit.*"),
            (f"{theirs}head.mlp.weight", f"{ours}head.mlp.layers.0.weight"),
            (f"{theirs}head.mlp.bias", f"{ours}head.mlp.layers.0.bias"),
            (f"{theirs}head.mlp.*", f"{ours}head.mlp.layers.*"),
            (f"{theirs}head.last_layer.*", f"{ours}head.last.*"),
            (f"{theirs}head.last_layer2.*", f"{ours}patch_last.*"),
        )
    ),
)


def build(case: Json) -> IBOT:
    """The method of a case, with all its hyper-parameters."""
    head = case["head"]
    if head["shared_head"] and not head["shared_head_teacher"]:
        raise ValueError("a target with two sets of prototypes cannot follow an online network with one")
    return IBOT(
        IBOTConfig(
            encoder=encoder_config(
                case, position="learned", position_resize="offset", layer_scale=case.get("layer_scale")
            ),
            # The masks themselves are recorded; only their kind is configured.
            mask=VaryingMaskConfig(kind="random" if case["mask"]["kind"].startswith("rand") else "blockwise"),
            head=PrototypeHeadConfig(
                layers=head["layers"],
                hidden=head["hidden"],
                bottleneck=head["bottleneck"],
                out=head["out"],
                norm=_NORMS[head["norm"]],  # type: ignore[arg-type]
                activation=head["act"],
                fixed_length=head["norm_last_layer"],
            ),
            patch_out=None if head["shared_head"] else head["patch_out"],
            share_target=head["shared_head_teacher"] and not head["shared_head"],
            patch_centre_momentum=case["center_momentum2"],
            weight=case["lambda1"],
            patch_weight=case["lambda2"],
            **shared_settings(case),
        )
    )


def views(case: Json, tensors: Tensors, step: int) -> IBOTViews:
    """Both large crops with their masks, and the small ones."""
    mask_BN, target_mask_BN = tensors["masks"][step].bool()
    return IBOTViews(mask_BN=mask_BN, target_mask_BN=target_mask_BN, **multi_crop_fields(case, tensors, step))


def online_class(method: IBOT, views: IBOTViews) -> Tensor:
    """Logits of the masked large crops, view-major."""
    assert views.target is not None
    assert views.mask_BN is not None
    assert views.target_mask_BN is not None
    mask_GN = torch.cat([views.mask_BN, views.target_mask_BN])
    return method.head(method.encoder(torch.cat([views.online, views.target]), replace_BN=mask_GN))[:, 0]


def online_local(method: IBOT, views: IBOTViews) -> Tensor:
    """Logits of the small crops, view-major."""
    assert views.local is not None
    return method.head(method.encoder(views.local.flatten(0, 1)))[:, 0]


def online_patches(method: IBOT, views: IBOTViews) -> Tensor:
    """Logits of all patches of the first large crop, masked as it is."""
    features = method.head.features(method.encoder(views.online, replace_BN=views.mask_BN))
    return method.patch_prototypes(method.encoder.patches(features))


def target_class(method: IBOT, views: IBOTViews) -> Tensor:
    """The target's logits of the large crops, view-major."""
    assert views.target is not None
    return method.target_head(image_feature(method.target_encoder, torch.cat([views.online, views.target])))


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=views,
    losses={"assignment": "losses_cls", "patch_assignment": "losses_patch"},
    predictions={
        "student_cls_first": online_class,
        "student_local_cls_first": online_local,
        "student_patch_first": online_patches,
        "teacher_cls_first": target_class,
    },
    schedules={
        "momentum": "momentum",
        "target_temperature": "teacher_temp",
        "patch_target_temperature": "teacher_patch_temp",
    },
    states={"centers": "centre", "centers2": "patch_centre"},
    total_steps=run_steps,
)
