"""M3AE as zhjohnchan/M3AE names and records it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from unmask.interop.authors.case import (
    Authors,
    Json,
    Tensors,
    encoder_config,
    image_views,
    mean_and_std,
    optimizer_config,
)
from unmask.interop.authors.names import NameTable
from unmask.masking import MaskConfig
from unmask.methods.base import Method, check_mask
from unmask.methods.m3ae import M3AE, CaptionedViews, M3AEConfig
from unmask.models.co_attention import CoAttentionConfig
from unmask.models.decoder import DecoderConfig
from unmask.models.text import TextConfig

IGNORED = -100


def _clip_blocks(theirs: str, ours: str) -> NameTable:
    """CLIP's names of blocks to timm's."""
    parts = (
        ("ln_1.*", "norm1.*"),
        ("ln_2.*", "norm2.*"),
        ("attn.in_proj_*", "attn.qkv.*"),
        ("attn.out_proj.*", "attn.proj.*"),
        ("mlp.c_fc.*", "mlp.fc1.*"),
        ("mlp.c_proj.*", "mlp.fc2.*"),
    )
    return tuple((f"{theirs}.resblocks.*.{part}", f"{ours}.blocks.*.{name}") for part, name in parts)


def _co_attention(theirs: str, ours: str) -> NameTable:
    """BERT's names of a stream's layers to ours."""
    rows: list[tuple[str, str | None]] = []
    for attention, name in (("attention", "self_attention"), ("crossattention", "cross_attention")):
        rows += [
            (f"{theirs}.*.{attention}.self.*", f"{ours}.*.{name}.*"),
            (f"{theirs}.*.{attention}.output.dense.*", f"{ours}.*.{name}.out.*"),
            (f"{theirs}.*.{attention}.output.LayerNorm.*", f"{ours}.*.{name}.norm.*"),
        ]
    rows += [
        (f"{theirs}.*.intermediate.dense.*", f"{ours}.*.inner.*"),
        (f"{theirs}.*.output.dense.*", f"{ours}.*.outer.*"),
        (f"{theirs}.*.output.LayerNorm.*", f"{ours}.*.norm.*"),
    ]
    return tuple(rows)


NAMES: NameTable = (
    ("vision_encoder.token_embedding.*", None),
    ("vision_encoder.positional_embedding", None),
    ("vision_encoder.ln_final.*", None),
    ("language_encoder.pooler.*", None),
    ("vision_encoder.visual.class_embedding", "encoder.vit.cls_token"),
    ("vision_encoder.visual.positional_embedding", "encoder.vit.pos_embed"),
    ("vision_encoder.visual.conv1.*", "encoder.vit.patch_embed.proj.*"),
    ("vision_encoder.visual.ln_pre.*", "encoder.vit.norm_pre.*"),
    ("vision_encoder.visual.ln_post.*", "encoder.vit.norm.*"),
    *_clip_blocks("vision_encoder.visual.transformer", "encoder.vit"),
    ("language_encoder.*", "text.network.*"),
    ("multi_modal_language_proj.*", "fusion.text_in.*"),
    ("multi_modal_vision_proj.*", "fusion.image_in.*"),
    *_co_attention("multi_modal_language_layers", "fusion.text_layers"),
    *_co_attention("multi_modal_vision_layers", "fusion.image_layers"),
    ("multi_modal_language_pooler.*", "fusion.text_pooler.*"),
    ("multi_modal_vision_pooler.*", "fusion.image_pooler.*"),
    ("modality_type_embeddings.*", "kinds.*"),
    ("mlm_head.bias", "mlm_head.words.bias"),
    ("mlm_head.decoder.*", "mlm_head.words.*"),
    ("mlm_head.transform.dense.*", "mlm_head.dense.*"),
    ("mlm_head.transform.LayerNorm.*", "mlm_head.norm.*"),
    *_clip_blocks("mim_head.decoder", "mim_head"),
    ("mim_head.decoder_pos_embed", "mim_head.position"),
    ("mim_head.decoder_embed.*", "mim_head.embed.*"),
    ("mim_head.decoder_norm.*", "mim_head.norm.*"),
    ("mim_head.decoder_pred.*", "mim_head.head.*"),
    ("mim_head.mask_token", "mim_head.mask_token"),
    ("itm_head.fc.*", "itm_head.*"),
)


def build(case: Json) -> M3AE:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    vision = {"embed_dim": case["vision_width"], "depth": case["vision_blocks"], "heads": case["vision_heads"]}
    # The ratio that is recorded is the co-attention layers'; CLIP's and RoBERTa's is 4.
    encoder = encoder_config(case | vision | {"mlp_ratio": 4})
    decoder, weights = case["mim_decoder"], case["loss_weights"]
    return M3AE(
        M3AEConfig(
            encoder=replace(encoder, name="vit_base_patch16_clip_quickgelu_224"),
            mask=MaskConfig(kind="random", ratio=case["mask_ratio"]),
            text=TextConfig(
                width=case["text_width"],
                depth=case["text_layers"],
                heads=case["text_heads"],
                length=case["text_len"],
                rows=case["vocab"],
            ),
            fusion=CoAttentionConfig(
                width=case["hidden_size"],
                depth=case["co_attention_layers"],
                heads=case["heads"],
                mlp_ratio=case["mlp_ratio"],
            ),
            dropout=_leading_number(case.get("dropout", 0)),
            decoder=DecoderConfig(
                width=decoder["width"],
                depth=decoder["layers"],
                heads=decoder["heads"],
                activation="quick_gelu",
                norm_eps=1e-5,
            ),
            decoded_layer=case["mim_layer"],
            norm_pixels=case["norm_pix_loss"],
            mlm_weight=weights["mlm"],
            mim_weight=weights["mim"],
            itm_weight=weights["itm"],
            head_lr_scale=case["lr_multiplier_head"],
            fusion_lr_scale=case["lr_multiplier_multi_modal"],
            mean=mean,
            std=std,
            optimizer=replace(optimizer_config(case), kind="adamw_bert"),
        )
    )


def _leading_number(value: object) -> float:
    """A number, or the one that a remark begins with ("0 here (official .1)")."""
    found = re.match(r"[\d.]+", str(value))
    if found is None:
        raise ValueError(f"dropout must be a number, got {value!r}")
    return float(found[0])


def views(case: Json, tensors: Tensors, step: int) -> CaptionedViews:
    """Recorded inputs of a step. Of the false pictures only those count that are shown."""
    true = image_views(case, tensors, step)
    false_BCHW = image_views(case, tensors | {"images": tensors["images_false"]}, step).online
    is_false_B = tensors["itm_labels"][step] == 0
    places_B = len(true.online) + is_false_B.cumsum(0) - 1
    return CaptionedViews(
        online=true.online,
        mask_BN=true.mask_BN,
        text_BT=tensors["text_ids"][step].long(),
        padding_BT=tensors["text_masks"][step] == 0,
        hidden_text_BT=tensors["text_ids_mlm"][step].long(),
        asked_BT=tensors["text_labels_mlm"][step] != IGNORED,
        further_FCHW=false_BCHW[is_false_B],
        shown_B=torch.where(is_false_B, places_B, torch.arange(len(places_B))),
    )


def predict_words(method: Method, views: CaptionedViews) -> Tensor:
    """Logits of all tokens of captions with hidden words."""
    assert isinstance(method, M3AE)
    text_BTD, hidden_text_BTD = method.texts(views)
    return method.mlm_head(method.with_whole_images(views, text_BTD, hidden_text_BTD)[0])


def predict_match(method: Method, views: CaptionedViews) -> Tensor:
    """Logits of whether pictures belong to captions."""
    assert isinstance(method, M3AE)
    return method.itm_head(method.with_whole_images(views, *method.texts(views))[1])


def predict_patches(method: Method, views: CaptionedViews) -> Tensor:
    """The decoder's output for all patches."""
    assert isinstance(method, M3AE)
    mask_BN = check_mask(views.mask_BN)
    image_BLD = method.with_visible_patches(views, method.texts(views)[0], mask_BN)
    return method.mim_head.predict(method.mim_head(image_BLD, mask_BN))


def weighted(name: str) -> Callable[[Json, Tensors, int], float]:
    """Their loss, recorded without its weight, as ours has it."""
    return lambda case, tensors, step: case["loss_weights"][name] * float(tensors[f"losses_{name}"][step])


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=views,
    losses={name: weighted(name) for name in ("mlm", "mim", "itm")},
    predictions={
        "mlm_logits_first": predict_words,
        "itm_logits_first": predict_match,
        "pred_first": predict_patches,
    },
)
