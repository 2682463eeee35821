"""SimCLR as lightly's head on DINO's ViT names and records it."""

from __future__ import annotations

from unmask.interop.authors.case import Authors, Json, encoder_config, mean_and_std, optimizer_config, two_image_views
from unmask.methods.siamese import image_feature
from unmask.methods.simclr import SimCLR, SimCLRConfig
from unmask.models.heads import MLPHeadConfig

NAMES = (("backbone.*", "encoder.vit.*"), ("projection_head.layers.*", "projector.layers.*"))


def build(case: Json) -> SimCLR:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    return SimCLR(
        SimCLRConfig(
            encoder=encoder_config(case, position="learned"),
            projector=MLPHeadConfig(
                hidden=case["projector_hidden"], out=case["out_dim"], layers=2, last_norm=True, last_affine=True
            ),
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
    losses={"contrast": "losses"},
    predictions={
        "z1_first": lambda method, views: method.projector(image_feature(method.encoder, views.online)),
        "z2_first": lambda method, views: method.projector(image_feature(method.encoder, views.target)),
    },
)
