"""BEiT as microsoft/unilm (beit) names and records it."""

from __future__ import annotations

from unmask.interop.authors.case import (
    Authors,
    Json,
    Tensors,
    encoder_config,
    image_views,
    mean_and_std,
    optimizer_config,
)
from unmask.masking import MaskConfig
from unmask.methods.beit import BEiT, BEiTConfig
from unmask.methods.tokens import TokenViews

NAMES = (
    ("mask_token", "encoder.mask_token"),
    ("lm_head.*", "head.*"),
    ("*", "encoder.vit.*"),
)


def build(case: Json) -> BEiT:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    return BEiT(
        BEiTConfig(
            encoder=encoder_config(case, position="relative", layer_scale=case["layer_scale_init"]),
            # The masks themselves are recorded; only their kind is configured.
            mask=MaskConfig(kind="blockwise", ratio=0.5),
            vocabulary=case["vocabulary"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def token_views_of(case: Json, tensors: Tensors, step: int) -> TokenViews:
    """Recorded images, masks and codes of a step."""
    views = image_views(case, tensors, step)
    return TokenViews(online=views.online, mask_BN=views.mask_BN, token_ids_BN=tensors["token_ids"][step].long())


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=token_views_of,
    losses={"tokens": "losses"},
    predictions={"pred_first": lambda method, views: method.logits(views)},
)
