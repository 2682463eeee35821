"""MaskFeat as facebookresearch/SlowFast names and records it."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.interop.authors.case import (
    Authors,
    Json,
    encoder_config,
    image_views,
    mean_and_std,
    optimizer_config,
)
from unmask.masking import MaskConfig
from unmask.methods.base import Method, check_mask
from unmask.methods.maskfeat import MaskFeat, MaskFeatConfig
from unmask.views import Views

NAMES = (
    ("mask_token", "encoder.mask_token"),
    ("pred_head.transforms.0.0.*", "norm.*"),
    ("pred_head.projections.0.*", "head.*"),
    ("*", "encoder.vit.*"),
)


def build(case: Json) -> MaskFeat:
    """The method of a case, with all its hyper-parameters."""
    if case["prediction_block"] != case["depth"] - 1 or case["hog"]["gaussian_window"]:
        raise ValueError("only predictions from the last block, of histograms without a window, are known here")
    mean, std = mean_and_std(case)
    return MaskFeat(
        MaskFeatConfig(
            encoder=encoder_config(case, position="learned", final_norm=False),
            # The masks themselves are recorded; only their kind is configured.
            mask=MaskConfig(kind="blockwise", ratio=case["mask_ratio"]),
            bins=case["hog"]["bins"],
            cell=case["hog"]["cell"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def predict(method: Method, views: Views) -> Tensor:
    """Predictions for the hidden patches."""
    assert isinstance(method, MaskFeat)
    return method.predict(views.online, check_mask(views.mask_BN))


def target(method: Method, views: Views) -> Tensor:
    """Targets of the hidden patches."""
    assert isinstance(method, MaskFeat)
    return method.target(views.online, check_mask(views.mask_BN))


def all_targets(method: Method, views: Views) -> Tensor:
    """Targets of all patches, [B, N, K]."""
    assert isinstance(method, MaskFeat)
    every_BN = torch.ones_like(check_mask(views.mask_BN))
    return method.target(views.online, every_BN).unflatten(0, every_BN.shape)


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=image_views,
    losses={"features": "losses"},
    predictions={"pred_first": predict, "target_first": target, "hog_first_batch": all_targets},
)
