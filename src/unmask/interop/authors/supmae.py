"""SupMAE as enyac-group/supmae names and records it: MAE's names, and a head of its own."""

from __future__ import annotations

from torch import Tensor

from unmask.interop.authors.case import (
    Authors,
    Json,
    Tensors,
    encoder_config,
    image_views,
    mean_and_std,
    optimizer_config,
)
from unmask.interop.authors.mae import NAMES as MAE_NAMES
from unmask.masking import MaskConfig
from unmask.methods.base import Method, check_mask
from unmask.methods.supmae import LabelledViews, SupMAE, SupMAEConfig
from unmask.models.decoder import DecoderConfig

NAMES = (("cls_head.*", "classifier.layers.*"), *MAE_NAMES)


def build(case: Json) -> SupMAE:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    return SupMAE(
        SupMAEConfig(
            encoder=encoder_config(case, position="sincos", init="xavier"),
            mask=MaskConfig(kind="random", ratio=case["mask_ratio"]),
            decoder=DecoderConfig(width=case["decoder_dim"], depth=case["decoder_depth"], heads=case["decoder_heads"]),
            norm_pixels=case["norm_pix_loss"],
            classes=case["classes"],
            class_hidden=case["cls_hidden"],
            class_feature="mean" if case["global_pool"] else "class",
            class_temperature=case["cls_temperature"],
            class_weight=case["cls_loss_weight"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def views(case: Json, tensors: Tensors, step: int) -> LabelledViews:
    """Recorded images and labels of a step."""
    shared = image_views(case, tensors, step)
    return LabelledViews(online=shared.online, mask_BN=shared.mask_BN, labels_B=tensors["labels"][step])


def predict(method: Method, views: LabelledViews) -> Tensor:
    """The decoder's output for all patches."""
    assert isinstance(method, SupMAE)
    mask_BN = check_mask(views.mask_BN)
    return method.decoder.predict(method.decoder(method.encoder(views.online, drop_BN=mask_BN), mask_BN))


def classify(method: Method, views: LabelledViews) -> Tensor:
    """Logits, before the temperature."""
    assert isinstance(method, SupMAE)
    return method.classify(method.encoder(views.online, drop_BN=check_mask(views.mask_BN)))


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=views,
    losses={"reconstruction": "losses_reconstruction", "classification": "losses_classification_weighted"},
    predictions={"pred_first": predict, "logits_first": classify},
)
