"""MixMask as kirill-vish/MixMask names and records it: MixMask alone, and with Un-Mix ("mixmask_both").

The recorded encoders are small ones, not the authors' ResNet-50: a few convolutions, or a ViT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.interop.authors.case import (
    Authors,
    Json,
    Tensors,
    encoder_config,
    mean_and_std,
    optimizer_config,
    two_image_views,
)
from unmask.methods.base import Method
from unmask.methods.mixmask import MixedViews, MixMask, MixMaskConfig, blend, fill, paste
from unmask.methods.siamese import image_feature, second_view
from unmask.models.convolutional import ConvEncoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.heads import MLPHeadConfig

NAMES = (
    ("queue", "queue.keys_DQ"),
    ("queue_ptr", "queue.position"),
    *(
        pair
        for theirs, ours in (("encoder_q", ""), ("encoder_k", "target_"))
        for pair in (
            (f"{theirs}.fc.*", f"{ours}projector.layers.*"),
            (f"{theirs}.features.*", f"{ours}encoder.conv.*"),
            (f"{theirs}.*", f"{ours}encoder.vit.*"),
        )
    ),
)


def build(case: Json) -> MixMask:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    recorded = case["encoder"]
    convolutions = recorded["type"] == "conv"
    width = recorded["widths"][-1] if convolutions else recorded["embed_dim"]
    plain = encoder_config(
        {"image": case["image"], "patch": 1, "embed_dim": width, "depth": 1, "heads": 1}
        if convolutions
        else {"image": case["image"], **recorded},
        position="learned",
    )
    return MixMask(
        MixMaskConfig(
            encoder=plain,
            mix="both" if case["method"] == "mixmask_both" else "mixmask",
            mask_cells=case["grid_size"],
            mask_kind=case["mask_type"],
            mask_share=case["mask_lam"],
            projector=MLPHeadConfig(
                hidden=width, out=case["out_dim"], layers=2, norm="none", hidden_bias=True, out_bias=True
            ),
            queue=case["queue"],
            temperature=case["temperature"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        ),
        encoder=small_convolutions(plain, recorded["widths"]) if convolutions else None,
    )


def small_convolutions(plain: EncoderConfig, widths: list[int]) -> ConvEncoder:
    """For each width a 3 x 3 convolution with stride 2, batch norm and ReLU; for images of the size in `plain`."""
    layers: list[nn.Module] = []
    before = plain.channels
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    config = EncoderConfig(name="convolutions", image_height=plain.image_height, image_width=plain.image_width)
    # Only the mean of the map is read, so that its true stride, by which not every size divides, plays no part.
    return ConvEncoder(config, nn.Sequential(*layers), width=before, stride=1, stages=len(widths))


def views(case: Json, tensors: Tensors, step: int) -> MixedViews:
    """Views of a step with the recorded mixtures."""
    plain = two_image_views(case, tensors, step)
    images, samples = plain.online, len(plain.online)
    mirrored_B = torch.arange(samples).flip(0)
    mixed, partners, shares = [], [], []
    if "unmix_lambda" in tensors:
        share = float(tensors["unmix_lambda"][step])
        top, left, bottom, right = (int(end) for end in tensors["unmix_box"][step])
        blended = bool(tensors["unmix_global"][step])
        mixed.append(blend(images, share) if blended else paste(images, (top, bottom, left, right)))
        partners.append(mirrored_B)
        shares.append(share)
    kept_SS = tensors["keep_masks"][step]
    kept_11HW = F.interpolate(kept_SS[None, None].float(), size=images.shape[-2:], mode="nearest")
    partner_B = tensors["mask_permutation"][step] if "mask_permutation" in tensors else mirrored_B
    mixed.append(fill(images, kept_11HW[0, 0] > 0, partner_B))
    partners.append(partner_B)
    shares.append(float(kept_11HW.double().mean()))
    return MixedViews(
        online=plain.online, target=plain.target, mixed=tuple(mixed), partners=tuple(partners), shares=tuple(shares)
    )


def by_share(own: str, partners: str, share: Callable[[Tensors, int], float]) -> Callable[[Json, Tensors, int], float]:
    """Their two terms of a mixture, which they record without weights."""

    def loss(case: Json, tensors: Tensors, step: int) -> float:
        weight = share(tensors, step)
        return float(weight * tensors[own][step] + (1 - weight) * tensors[partners][step])

    return loss


def kept(tensors: Tensors, step: int) -> float:
    """Share of the image itself under the mask of a step."""
    return float(tensors["keep_masks"][step].double().mean())


def logits(query_BE: Tensor, target_BE: Tensor, method: MixMask) -> Tensor:
    """Their table of logits [B, 1 + Q]: own key first, then the queue."""
    query_BE, target_BE = F.normalize(query_BE, dim=-1), F.normalize(target_BE, dim=-1)
    own_B1 = (query_BE * target_BE).sum(dim=-1, keepdim=True)
    return torch.cat([own_B1, query_BE @ method.queue.keys_DQ], dim=1) / method.config.temperature


def first_logits(method: Method, views: MixedViews, which: int | None) -> Tensor:
    """Logits of the first view (`which` None), or of a mixture, in the order in which the network sees them."""
    assert isinstance(method, MixMask)
    target_BE = method.target_projector(image_feature(method.target_encoder, second_view(views)))
    images = views.online if which is None else views.mixed[which]
    return logits(method.project(images), target_BE, method)


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=views,
    losses={"contrast": "losses_original", "mask": by_share("losses_mix", "losses_mix_reversed", kept)},
    predictions={
        "logits_first": lambda method, views: first_logits(method, views, None),
        "logits_mix_first": lambda method, views: first_logits(method, views, 0),
    },
    states={"final_queue": "queue.keys_DQ"},
)

AUTHORS_BOTH = replace(
    AUTHORS,
    losses={
        "contrast": "losses_original",
        "unmix": by_share(
            "losses_unmix", "losses_unmix_reversed", lambda tensors, step: float(tensors["unmix_lambda"][step])
        ),
        "mask": by_share("losses_mask", "losses_mask_reversed", kept),
    },
)
