"""ConMIM as TencentARC/ConMIM names and records it."""

from __future__ import annotations

from unmask.interop.authors.case import (
    Authors,
    Json,
    encoder_config,
    image_views,
    mean_and_std,
    optimizer_config,
)
from unmask.masking import MaskConfig
from unmask.methods.conmim import ConMIM, ConMIMConfig
from unmask.models.heads import MLPHeadConfig

NAMES = (
    ("lm_head.*", None),
    ("mask_token", "encoder.mask_token"),
    ("projectors.*", "projector.layers.*"),
    ("*", "encoder.vit.*"),
)
TARGET_NAMES = (
    ("lm_head.*", None),
    ("mask_token", "target_encoder.mask_token"),
    ("projectors.*", "target_projector.layers.*"),
    ("*", "target_encoder.vit.*"),
)


def build(case: Json) -> ConMIM:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    return ConMIM(
        ConMIMConfig(
            encoder=encoder_config(case, position="relative", layer_scale=case["layer_scale"]),
            # The masks themselves are recorded; only their kind is configured.
            mask=MaskConfig(kind="blockwise" if case["mask_type"] == "block" else "random", ratio=0.5),
            projector=MLPHeadConfig(
                hidden=case["projector_hidden"], out=case["projector_out"], layers=3, last_norm=True
            ),
            temperature=case["temperature"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


AUTHORS = Authors(names=NAMES, target_names=TARGET_NAMES, build=build, views=image_views, losses={"contrast": "losses"})
