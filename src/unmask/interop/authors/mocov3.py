"""MoCo v3 as facebookresearch/moco-v3 names and records it."""

from __future__ import annotations

from unmask.interop.authors.case import Authors, Json, encoder_config, mean_and_std, optimizer_config, two_image_views
from unmask.methods.mocov3 import MoCoV3, MoCoV3Config
from unmask.methods.siamese import image_feature
from unmask.models.heads import MLPHeadConfig

NAMES = (
    ("base_encoder.head.*", "projector.layers.*"),
    ("base_encoder.*", "encoder.vit.*"),
    ("momentum_encoder.head.*", "target_projector.layers.*"),
    ("momentum_encoder.*", "target_encoder.vit.*"),
    ("predictor.*", "predictor.layers.*"),
)


def build(case: Json) -> MoCoV3:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)

    def head(widths: str) -> MLPHeadConfig:
        layers = len(widths.split("-")) - 1
        return MLPHeadConfig(hidden=case["mlp_hidden"], out=case["out_dim"], layers=layers, last_norm=True)

    return MoCoV3(
        MoCoV3Config(
            encoder=encoder_config(case, position="sincos"),
            freeze_patches=any("patch_embed" in name for name in case["frozen"]),
            projector=head(case["projector"]),
            predictor=head(case["predictor"]),
            temperature=case["temperature"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=two_image_views,
    losses={"first_finds_second": "losses_q1k2", "second_finds_first": "losses_q2k1"},
    predictions={
        "q1_first": lambda method, views: method.predictor(
            method.projector(image_feature(method.encoder, views.online))
        ),
        "k2_first": lambda method, views: method.target_projector(image_feature(method.target_encoder, views.target)),
    },
)
