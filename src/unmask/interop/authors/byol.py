"""BYOL as open-mmlab/mmselfsup names and records it (the authors' own code is JAX)."""

from __future__ import annotations

from collections.abc import Callable

from unmask.interop.authors.case import (
    Authors,
    Json,
    Tensors,
    encoder_config,
    mean_and_std,
    optimizer_config,
    two_image_views,
)
from unmask.methods.byol import BYOL, BYOLConfig
from unmask.methods.siamese import image_feature
from unmask.models.heads import MLPHeadConfig

_HEADS = (
    ("neck", "projector"),
    ("head.predictor", "predictor"),
    ("target_net.module.1", "target_projector"),
)

NAMES = (
    ("backbone.*", "encoder.vit.*"),
    ("target_net.module.0.*", "target_encoder.vit.*"),
    *(
        pair
        for theirs, ours in _HEADS
        for pair in (
            (f"{theirs}.fc0.*", f"{ours}.layers.0.*"),
            (f"{theirs}.bn0.*", f"{ours}.layers.1.*"),
            (f"{theirs}.fc1.*", f"{ours}.layers.3.*"),
        )
    ),
    # How many updates their averaging has made.
    ("target_net.steps", None),
)


def build(case: Json) -> BYOL:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)

    def head(hidden: int) -> MLPHeadConfig:
        return MLPHeadConfig(hidden=hidden, out=case["out_dim"], layers=2, hidden_bias=True)

    return BYOL(
        BYOLConfig(
            encoder=encoder_config(case, position="learned"),
            projector=head(case["projector_hidden"]),
            predictor=head(case["predictor_hidden"]),
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def paper_form(recorded: str) -> Callable[[Json, Tensors, int], float]:
    """Their terms are - mean cos, and their sum is doubled; ours, and the paper's, are 2 - 2 cos."""
    return lambda case, tensors, step: 2 + 2 * float(tensors[recorded][step])


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=two_image_views,
    losses={
        "first_to_second": paper_form("losses_online1_target2"),
        "second_to_first": paper_form("losses_online2_target1"),
    },
    total=lambda case, tensors, step: float(tensors["losses"][step]) + 4,
    predictions={
        "online_projection_1_first": lambda method, views: method.projector(
            image_feature(method.encoder, views.online)
        ),
        "target_projection_2_first": lambda method, views: method.target_projector(
            image_feature(method.target_encoder, views.target)
        ),
    },
)
