"""CAE as Atten4Vis/CAE names and records it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from unmask.interop.authors.beit import token_views_of
from unmask.interop.authors.case import Authors, Json, encoder_config, mean_and_std, optimizer_config
from unmask.masking import MaskConfig
from unmask.methods.cae import CAE, CAEConfig
from unmask.methods.tokens import TokenViews
from unmask.models.regressor import RegressorConfig

BLOCK = "regresser.regressor_blocks"
NAMES = (
    ("encoder.*", "encoder.vit.*"),
    ("encoder_to_regresser.*", "bridge.0.*"),
    ("encoder_to_regresser_norm.*", "bridge.1.*"),
    ("mask_token", "regressor.mask_token"),
    ("rd_pos_embed", "regressor.position"),
    (f"{BLOCK}.*.norm1_*", "regressor.blocks.*.norm_*"),
    (f"{BLOCK}.*.norm2_cross.*", "regressor.blocks.*.norm.*"),
    (f"{BLOCK}.*.cross_attn.*_bias", "regressor.blocks.*.*.bias"),
    (f"{BLOCK}.*.cross_attn.*", "regressor.blocks.*.*"),
    (f"{BLOCK}.*.mlp_cross.*", "regressor.blocks.*.mlp.*"),
    (f"{BLOCK}.*.gamma_*_cross", "regressor.blocks.*.gamma_*"),
    ("regresser.norm.*", "regressor.norm.*"),
    ("decoder.decoder_blocks.*", "regressor.decoder.*"),
    ("decoder.norm.*", "regressor.decoder_norm.*"),
    ("decoder.head.*", "regressor.head.*"),
)


def build(case: Json) -> CAE:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    # A name of BEiT's: its attention has no bias of keys, as theirs.
    plain = encoder_config(case, position="sincos", layer_scale=case["layer_scale_init"])
    encoder = replace(plain, name="beit_base_patch16_224")
    return CAE(
        CAEConfig(
            encoder=encoder,
            # The masks themselves are recorded; only their kind is configured.
            mask=MaskConfig(kind="blockwise", ratio=0.5, exact=True),
            vocabulary=case["vocabulary"],
            regressor=RegressorConfig(
                width=case["decoder_dim"],
                regressor_depth=case["regressor_depth"],
                regressor_heads=case["regressor_heads"],
                decoder_depth=case["decoder_depth"],
                decoder_heads=case["decoder_heads"],
                mlp_ratio=case.get("mlp_ratio", 4),
                layer_scale=case["decoder_layer_scale_init"],
            ),
            token_weight=case["main_loss_weight"],
            align_weight=case["align_loss_weight"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def convert(case: Json, theirs: str, value: Tensor) -> Tensor:
    """Their table of the regressor's positions begins with zeros for the class token, which takes no part."""
    return value[:, 1:] if theirs == "rd_pos_embed" else value


def predict_logits(method: CAE, views: TokenViews) -> Tensor:
    """Logits of all hidden patches of the batch."""
    assert views.mask_BN is not None
    return method.regressor.decode(method.latents(views)[0], views.mask_BN).flatten(0, 1)


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=token_views_of,
    losses={"tokens": "losses_main", "alignment": "losses_align"},
    convert=convert,
    predictions={
        "pred_logits_first": predict_logits,
        "pred_latent_first": lambda method, views: method.latents(views)[0],
        "target_latent_first": lambda method, views: method.latents(views)[1],
    },
)
