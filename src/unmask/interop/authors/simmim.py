"""SimMIM as microsoft/SimMIM names and records it."""

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
from unmask.methods.base import Method
from unmask.methods.simmim import SimMIM, SimMIMConfig
from unmask.views import Views

NAMES = (
    ("encoder.mask_token", "encoder.mask_token"),
    ("encoder.*", "encoder.vit.*"),
    ("decoder.0.*", "decoder.*"),
)


def build(case: Json) -> SimMIM:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    return SimMIM(
        SimMIMConfig(
            encoder=encoder_config(case, position="relative", layer_scale=case["layer_scale_init"]),
            mask=MaskConfig(kind="random", ratio=case["mask_ratio"]),
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def convert(case: Json, theirs: str, value: Tensor) -> Tensor:
    """Their 1x1 convolution puts a patch out as (channel, row, column); our linear layer as (row, column, channel)."""
    if not theirs.startswith("decoder.0."):
        return value
    patch = case["patch"]
    cells = value.reshape(-1, patch, patch, *value.shape[1:2])
    return cells.movedim(0, 2).reshape(value.shape[0], *value.shape[1:2])


def predict(method: Method, views: Views) -> Tensor:
    """The whole reconstructed image."""
    reconstruction_BCHW = method.inspect(views).reconstruction_BCHW
    assert reconstruction_BCHW is not None
    return reconstruction_BCHW


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=image_views,
    losses={"reconstruction": "losses"},
    convert=convert,
    predictions={"pred_first": predict},
)
