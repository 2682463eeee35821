"""MAE as facebookresearch/mae names and records it."""

from __future__ import annotations

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
from unmask.methods.mae import MAE, MAEConfig
from unmask.models.decoder import DecoderConfig
from unmask.views import Views

NAMES = (
    ("decoder_pos_embed", "decoder.position"),
    ("decoder_embed.*", "decoder.embed.*"),
    ("decoder_blocks.*", "decoder.blocks.*"),
    ("decoder_norm.*", "decoder.norm.*"),
    ("decoder_pred.*", "decoder.head.*"),
    ("mask_token", "decoder.mask_token"),
    ("*", "encoder.vit.*"),
)


def build(case: Json) -> MAE:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    return MAE(
        MAEConfig(
            encoder=encoder_config(case, position="sincos", init="xavier"),
            mask=MaskConfig(kind="random", ratio=case["mask_ratio"]),
            decoder=DecoderConfig(width=case["decoder_dim"], depth=case["decoder_depth"], heads=case["decoder_heads"]),
            norm_pixels=case["norm_pix_loss"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def predict(method: Method, views: Views) -> Tensor:
    """The decoder's output for all patches."""
    assert isinstance(method, MAE)
    mask_BN = check_mask(views.mask_BN)
    return method.decoder.predict(method.decoder(method.encoder(views.online, drop_BN=mask_BN), mask_BN))


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=image_views,
    losses={"reconstruction": "losses"},
    predictions={"pred_first": predict},
)
