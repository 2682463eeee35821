"""CMAE as ZhichengHuang/CMAE names and records it."""

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
from unmask.methods.cmae import CMAE, CMAEConfig
from unmask.models.decoder import DecoderConfig
from unmask.models.heads import MLPHeadConfig

_NETWORKS = (("backbone", "encoder"), ("target_backbone", "target_encoder"))
_DECODERS = ("pixel_decoder", "feature_decoder")
_HEADS = (
    ("head.predictor", "predictor"),
    ("projector", "projector"),
    ("target_projector", "target_projector"),
)

NAMES = (
    *(
        pair
        for theirs, ours in _NETWORKS
        for pair in (
            (f"{theirs}.patch_embed.projection.*", f"{ours}.vit.patch_embed.proj.*"),
            (f"{theirs}.layers.*.ln1.*", f"{ours}.vit.blocks.*.norm1.*"),
            (f"{theirs}.layers.*.ln2.*", f"{ours}.vit.blocks.*.norm2.*"),
            (f"{theirs}.layers.*.ffn.layers.0.0.*", f"{ours}.vit.blocks.*.mlp.fc1.*"),
            (f"{theirs}.layers.*.ffn.layers.1.*", f"{ours}.vit.blocks.*.mlp.fc2.*"),
            (f"{theirs}.layers.*.attn.*", f"{ours}.vit.blocks.*.attn.*"),
            (f"{theirs}.ln1.*", f"{ours}.vit.norm.*"),
            (f"{theirs}.*", f"{ours}.vit.*"),
        )
    ),
    *(
        pair
        for decoder in _DECODERS
        for pair in (
            (f"{decoder}.decoder_blocks.*.ln1.*", f"{decoder}.blocks.*.norm1.*"),
            (f"{decoder}.decoder_blocks.*.ln2.*", f"{decoder}.blocks.*.norm2.*"),
            (f"{decoder}.decoder_blocks.*.ffn.layers.0.0.*", f"{decoder}.blocks.*.mlp.fc1.*"),
            (f"{decoder}.decoder_blocks.*.ffn.layers.1.*", f"{decoder}.blocks.*.mlp.fc2.*"),
            (f"{decoder}.decoder_blocks.*.attn.*", f"{decoder}.blocks.*.attn.*"),
            (f"{decoder}.decoder_pos_embed", f"{decoder}.position"),
            (f"{decoder}.decoder_embed.*", f"{decoder}.embed.*"),
            (f"{decoder}.decoder_pred.*", f"{decoder}.head.*"),
            (f"{decoder}.ln1.*", f"{decoder}.norm.*"),
            (f"{decoder}.mask_token", f"{decoder}.mask_token"),
        )
    ),
    *(
        pair
        for theirs, ours in _HEADS
        for pair in (
            (f"{theirs}.fc0.*", f"{ours}.layers.0.*"),
            (f"{theirs}.bn0.*", f"{ours}.layers.1.*"),
            (f"{theirs}.fc1.*", f"{ours}.layers.3.*"),
        )
    ),
)


def build(case: Json) -> CMAE:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    head = MLPHeadConfig(
        hidden=case["projector_hidden"],
        out=case["projector_out"],
        layers=2,
        hidden_bias=True,
        norm_eps=1e-6,
        synchronised=True,
    )

    def decoder(depth: int) -> DecoderConfig:
        return DecoderConfig(width=case["decoder_dim"], heads=case["decoder_heads"], depth=depth)

    return CMAE(
        CMAEConfig(
            encoder=encoder_config(case, position="sincos", init="xavier"),
            mask=MaskConfig(kind="random", ratio=case["mask_ratio"]),
            pixel_decoder=decoder(case["pixel_decoder_depth"]),
            feature_decoder=decoder(case["feature_decoder_depth"]),
            projector=head,
            predictor=head,
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
    views=image_views,
    losses={"reconstruction": "losses_reconstruction", "contrast": "losses_contrastive"},
)
