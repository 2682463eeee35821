"""DMAE as quanlin-wu/dmae names and records it: MAE's names."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.interop.authors.case import Authors, Json, Tensors, encoder_config, mean_and_std, optimizer_config
from unmask.interop.authors.mae import NAMES
from unmask.masking import MaskConfig
from unmask.methods.base import Method
from unmask.methods.dmae import DMAE, DMAEConfig, NoisyViews
from unmask.models.decoder import DecoderConfig
from unmask.views import normalise, to_float


def build(case: Json) -> DMAE:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    return DMAE(
        DMAEConfig(
            encoder=encoder_config(case, position="sincos", init="xavier"),
            mask=MaskConfig(kind="random", ratio=case["mask_ratio"]),
            sigma=case["sigma"],
            decoder=DecoderConfig(width=case["decoder_dim"], depth=case["decoder_depth"], heads=case["decoder_heads"]),
            norm_pixels=case["norm_pix_loss"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def views(case: Json, tensors: Tensors, step: int) -> NoisyViews:
    """Recorded images of a step, with and without the recorded noise."""
    mean, std = mean_and_std(case)
    images_BCHW = to_float(tensors["images"][step], dtype=torch.float64)
    noise_BCHW = case["sigma"] * tensors["noise_unit"][step].double()
    return NoisyViews(
        online=normalise(images_BCHW + noise_BCHW, mean, std),
        clean=normalise(images_BCHW, mean, std),
        mask_BN=tensors["masks"][step].bool(),
    )


def predict(method: Method, views: NoisyViews) -> Tensor:
    """The decoder's output for all patches."""
    assert isinstance(method, DMAE)
    return method.predict(views)


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=views,
    losses={"reconstruction": "losses_reconstruction"},
    predictions={"pred_first": predict},
)
