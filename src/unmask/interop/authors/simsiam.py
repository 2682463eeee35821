"""SimSiam as facebookresearch/simsiam names and records it, on DINO's ViT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from unmask.interop.authors.case import (
    Authors,
    Json,
    Tensors,
    encoder_config,
    mean_and_std,
    optimizer_config,
    two_image_views,
)
from unmask.methods.siamese import image_feature
from unmask.methods.simsiam import SimSiam, SimSiamConfig
from unmask.models.heads import MLPHeadConfig

NAMES = (
    ("encoder.fc.*", "projector.layers.*"),
    ("encoder.*", "encoder.vit.*"),
    ("predictor.*", "predictor.layers.*"),
)


def build(case: Json) -> SimSiam:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    hidden = int(case["projector"].split("-")[1])
    return SimSiam(
        SimSiamConfig(
            encoder=encoder_config(case, position="learned"),
            projector=MLPHeadConfig(hidden=hidden, out=case["out_dim"], layers=3, out_bias=True, last_norm=True),
            predictor=MLPHeadConfig(hidden=case["predictor_hidden"], out=case["out_dim"], layers=2, out_bias=True),
            mean=mean,
            std=std,
            # The peak rate, which the predictor keeps.
            optimizer=replace(optimizer_config(case), lr=case["predictor_lr"]),
        )
    )


def half(recorded: str) -> Callable[[Json, Tensors, int], float]:
    """Their terms enter the loss by their mean."""
    return lambda case, tensors, step: float(tensors[recorded][step]) / 2


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=two_image_views,
    losses={"first_to_second": half("losses_p1z2"), "second_to_first": half("losses_p2z1")},
    predictions={
        "z1_first": lambda method, views: method.projector(image_feature(method.encoder, views.online)),
        "z2_first": lambda method, views: method.projector(image_feature(method.encoder, views.target)),
        "p1_first": lambda method, views: method.predictor(
            method.projector(image_feature(method.encoder, views.online))
        ),
        "p2_first": lambda method, views: method.predictor(
            method.projector(image_feature(method.encoder, views.target))
        ),
    },
)
