"""data2vec as facebookresearch/data2vec_vision names and records it."""

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
from unmask.methods.data2vec import Data2Vec, Data2VecConfig
from unmask.views import Views

NAMES = (
    ("ema.lm_head.*", None),
    ("ema.mask_token", "target_encoder.mask_token"),
    ("ema.*", "target_encoder.vit.*"),
    ("lm_head.*", "head.*"),
    ("mask_token", "encoder.mask_token"),
    ("*", "encoder.vit.*"),
)


def build(case: Json) -> Data2Vec:
    """The method of a case, with all its hyper-parameters."""
    if case["layer_results"] != "end" or case["attention_dropout"]:
        raise ValueError("only targets from the ends of blocks, without attention dropout, are known here")
    mean, std = mean_and_std(case)
    return Data2Vec(
        Data2VecConfig(
            encoder=encoder_config(case, position="relative", layer_scale=case["layer_scale_init"]),
            # The masks themselves are recorded; only their kind is configured.
            mask=MaskConfig(kind="blockwise", ratio=0.5),
            target_blocks=tuple(case["target_layers"]),
            normalise_blocks=case["target_layer_norm_each"],
            normalise_target=case["post_target_layer_norm"],
            beta=case["smooth_l1_beta"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def predict(method: Method, views: Views) -> Tensor:
    """Predictions for the hidden patches."""
    assert isinstance(method, Data2Vec)
    return method.predict(views.online, check_mask(views.mask_BN))


def target(method: Method, views: Views) -> Tensor:
    """Targets of the hidden patches."""
    assert isinstance(method, Data2Vec)
    return method.target(views.online, check_mask(views.mask_BN))


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=image_views,
    losses={"features": "losses"},
    predictions={"pred_first": predict, "target_first": target},
)
