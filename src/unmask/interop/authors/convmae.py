"""ConvMAE as Alpha-VL/ConvMAE names and records it."""

from __future__ import annotations

from torch import Tensor

from unmask.interop.authors.case import Authors, Json, image_views, mean_and_std, optimizer_config
from unmask.interop.authors.mae import predict
from unmask.masking import MaskConfig
from unmask.methods.convmae import ConvMAE, ConvMAEConfig
from unmask.models.decoder import DecoderConfig
from unmask.models.encoder_config import EncoderConfig

NAMES = (
    ("decoder_pos_embed", "decoder.position"),
    ("decoder_embed.*", "decoder.embed.*"),
    ("decoder_blocks.*", "decoder.blocks.*"),
    ("decoder_norm.*", "decoder.norm.*"),
    ("decoder_pred.*", "decoder.head.*"),
    ("mask_token", "decoder.mask_token"),
    *(
        pair
        for theirs, ours in (("1", "encoder.hybrid.stages.0"), ("2", "encoder.hybrid.stages.1"))
        for pair in (
            (f"patch_embed{theirs}.*", f"{ours}.embed.*"),
            (f"blocks{theirs}.*.mlp.fc1.*", f"{ours}.blocks.*.mlp.0.*"),
            (f"blocks{theirs}.*.mlp.fc2.*", f"{ours}.blocks.*.mlp.2.*"),
            (f"blocks{theirs}.*", f"{ours}.blocks.*"),
            (f"stage{theirs}_output_decode.*", f"{ours}.fuse.*"),
        )
    ),
    ("patch_embed3.*", "encoder.hybrid.embed.*"),
    ("patch_embed4.*", "encoder.hybrid.proj.*"),
    ("blocks3.*", "encoder.hybrid.blocks.*"),
    ("norm.*", "encoder.hybrid.norm.*"),
    ("pos_embed", "encoder.hybrid.pos_embed"),
)


def build(case: Json) -> ConvMAE:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    image = case["image"]
    height, width = image if isinstance(image, list) else (image, image)
    first, *others = case["patch_sizes"]
    if others != [2, 2]:
        raise ValueError(f"stages after the first have a stride of 2, not {others}")
    widths, depths, ratios = case["embed_dims"], case["depths"], case["mlp_ratios"]
    return ConvMAE(
        ConvMAEConfig(
            encoder=EncoderConfig(
                name="convmae_base_patch16",
                image_height=height,
                image_width=width,
                patch_size=4 * first,
                width=widths[2],
                depth=depths[2],
                heads=case["heads"],
                mlp_ratio=ratios[2],
                stage_widths=(widths[0], widths[1]),
                stage_depths=(depths[0], depths[1]),
                stage_mlp_ratios=(ratios[0], ratios[1]),
            ),
            mask=MaskConfig(kind="random", ratio=case["mask_ratio"]),
            decoder=DecoderConfig(
                width=case["decoder_dim"],
                depth=case["decoder_depth"],
                heads=case["decoder_heads"],
                mlp_ratio=case.get("decoder_mlp_ratio", 4),
            ),
            norm_pixels=case["norm_pix_loss"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def convert(case: Json, name: str, value: Tensor) -> Tensor:
    """Their embeddings and fusions are convolutions [out, in, row, column], ours linear layers of row, column, in."""
    if name.startswith(("patch_embed", "stage")) and value.ndim == 4:
        return value.permute(0, 2, 3, 1)
    return value


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=image_views,
    losses={"reconstruction": "losses"},
    convert=convert,
    predictions={"pred_first": predict},
)
