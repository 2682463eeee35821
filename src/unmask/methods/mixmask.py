"""MixMask: Revisiting Masking Strategy for Siamese ConvNets (Vishniakov, Xing & Shen, arXiv 2210.11456).

MoCo v2 with a further view in which masked cells of the image are filled from another image: it must find the keys of
both, by the share that each has in it. Convolutions cannot leave patches out, but they can look at other content there.

Shape legend: B samples, C channels, H x W pixels, E projected width, K sets of keys, Q keys of the queue, S cells along
a side of the mask.

Formula:
    q = projector(encoder(view 1)), k = target_projector(target_encoder(view 2)), queue: keys k of earlier batches
    L(q, k) = -log( exp(cos(q, k) / t) / (exp(cos(q, k) / t) + sum over the queue of exp(cos(q, key) / t)) )
    mixed = M * view 1 + (1 - M) * view 1 of the partner, one mask M for the batch, lambda its mean
    loss = L(q, k) + lambda * L(q_mixed, k) + (1 - lambda) * L(q_mixed, k of the partner)
    Un-Mix: the same with mixed = lambda * view 1 + (1 - lambda) * view 1 of the partner, or a box of the partner's

Where the authors' code differs from the paper, or is not told there:
- what their mask generator marks is what stays of the image: blocks of at most half of the 8 x 8 cells are kept, the
  rest is filled;
- the partner is the image at the mirrored place of the batch; where both mixtures are used (`mix=both`), Un-Mix has
  that one and MixMask a random permutation;
- Un-Mix alone crashes in their code (its lambda is read before it is drawn); here it runs, as it does beside MixMask
  (`mix=unmix`);
- the temperature given for mixtures is never read: all logits use the one temperature;
- everything trainable is decayed, biases and norms too;
- the target moves inside the forward pass, after the queries: with the weights that the last step left;
- their queue must be a multiple of the batch; here it need not.
On several devices the authors shuffle the keys' images over them, so that batch norm cannot tell a query its key; that
is not done here, and changes nothing on one device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.data.sources import Source
from unmask.masking import blockwise_mask
from unmask.methods.base import Inspection, Method, MethodConfig, MethodInfo, two_crops, two_views
from unmask.methods.siamese import image_feature, second_view
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.models.queue import KeyQueue
from unmask.models.target import ema_update_, frozen_copy
from unmask.objectives.contrastive import queue_infonce
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.ranks import gather_without_gradient
from unmask.schedule import Schedule
from unmask.trainee import Losses
from unmask.views import Views, generators

MIXTURES = {"mixmask": ("mask",), "unmix": ("unmix",), "both": ("unmix", "mask")}
COLOUR = ColourConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=0.8, grey_p=0.2, blur_p=0.5)


@dataclass(frozen=True, kw_only=True)
class MixMaskConfig(MethodConfig):
    """Knobs of MixMask; defaults are those of the authors' README (200 epochs of ResNet-50)."""

    encoder: Annotated[EncoderConfig, Doc("ResNet-50; any network, a ViT too, will do. [code]")] = EncoderConfig(
        name="resnet50"
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.2, 1.0)
    colour: Annotated[ColourConfig, Doc("Colour of both views. [MoCo v2, code: --aug-plus]")] = COLOUR
    mix: Annotated[
        Literal["mixmask", "unmix", "both"], Doc("Which mixtures of two images are a further view. [README: mixmask]")
    ] = "mixmask"
    mask_cells: Annotated[int, Doc("Cells along a side of the mask. [README: 8]")] = 8
    mask_kind: Annotated[
        Literal["block", "discrete"], Doc("block: blocks of cells stay; discrete: each cell by itself. [README: block]")
    ] = "block"
    mask_share: Annotated[
        float, Doc("block: largest share of the cells that stays; discrete: chance that a cell is filled. [README]")
    ] = 0.5
    unmix_beta: Annotated[float, Doc("Un-Mix: lambda is drawn from Beta(this, this). [code]")] = 1.0
    unmix_global: Annotated[float, Doc("Un-Mix: chance of a blend of whole images, else of a box. [code]")] = 0.5
    projector: Annotated[MLPHeadConfig, Doc("Head; hidden is as wide as the features of ResNet-50. [code: --mlp]")] = (
        MLPHeadConfig(hidden=2048, out=128, layers=2, norm="none", hidden_bias=True, out_bias=True)
    )
    queue: Annotated[
        int, Doc("Keys of earlier batches that serve as negatives; by default fewer where the data are few. [code]")
    ] = 65536
    temperature: Annotated[float, Doc("Temperature of InfoNCE. [README]")] = 0.2
    momentum: Annotated[Schedule, Doc("Momentum of the target. [code]")] = Schedule(kind="constant", start=0.999)
    optimizer: Annotated[
        OptimizerConfig, Doc("SGD, .03 per 256 images, cosine, no warm-up. [MoCo v2, code: --cos]")
    ] = OptimizerConfig(kind="sgd", lr=0.03, lr_batch=256, weight_decay=1e-4, warmup_epochs=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.queue < 1:
            raise ValueError(f"a queue must hold at least 1 key, got {self.queue}")
        if not 0 < self.mask_share < 1:
            raise ValueError(f"mask_share must lie strictly between 0 and 1, got {self.mask_share}")
        if self.mask_cells < 2 or int(self.mask_share * self.mask_cells**2) < 1:
            raise ValueError(
                f"a mask of {self.mask_cells}x{self.mask_cells} cells cannot keep {self.mask_share} of them"
            )
        if self.unmix_beta <= 0:
            raise ValueError(f"unmix_beta must be above 0, got {self.unmix_beta}")
        if not 0 <= self.unmix_global <= 1:
            raise ValueError(f"unmix_global must lie in [0, 1], got {self.unmix_global}")

    def for_source(self, source: Source) -> MixMaskConfig:
        """A queue of the usual length shrinks to an eighth of the images: a queue as long as the data would hold an
        image's own older key among its negatives."""
        longest = 2 ** max(1, (len(source) // 8).bit_length() - 1)
        usual = MixMaskConfig().queue
        return replace(self, queue=longest) if self.queue == usual > longest else self


@dataclass(frozen=True)
class MixedViews(Views):
    """Two views, and mixtures of the first ones of pairs of images, in the order of MIXTURES.

    Of each mixture: images, which sample is each one's partner, and the share of the sample itself.
    """

    mixed: tuple[Float[Tensor, "B C H W"], ...] = ()
    partners: tuple[Int64[Tensor, " B"], ...] = ()
    shares: tuple[float, ...] = ()


class MixMask(Method[MixedViews]):
    """MoCo v2 in which an image filled from another must find the keys of both (Vishniakov et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = MixMaskConfig
    target_moves: ClassVar[Literal["after step", "before step"]] = "before step"
    info: ClassVar[MethodInfo] = MethodInfo(
        title="MixMask",
        idea="MoCo v2 whose masked cells are filled from another image; the mixture must find both.",
        paper="arXiv 2210.11456",
        year=2022,
        family="siamese",
        online_input="whole image, and one filled from another",
        target="EMA encoder; queue of earlier images as negatives",
        objective="InfoNCE with a queue, by shares",
    )

    def __init__(self, config: MixMaskConfig, encoder: Encoder | None = None) -> None:
        """`encoder`: one of your own, in place of the one that the configuration names."""
        super().__init__()
        self.config: MixMaskConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False) if encoder is None else encoder
        self.projector = MLPHead(self.encoder.width, config.projector)
        self.target_encoder = frozen_copy(self.encoder)
        self.target_projector = frozen_copy(self.projector)
        self.queue = KeyQueue(config.projector.out, config.queue)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return two_crops(self.encoder, self.config)

    def make_views(self, batch: Batch) -> MixedViews:
        views = two_views(batch, self.encoder, self.config, (self.config.colour, self.config.colour))
        # Two crops leave the second generator unused; on the CPU, for shares that the device need not tell.
        _, generator = generators(batch.seed, "cpu")
        mixed, partners, shares = [], [], []
        for kind in MIXTURES[self.config.mix]:
            if kind == "unmix":
                images, share = unmix(views.online, self.config, generator)
                partner_B = torch.arange(len(images)).flip(0)
            else:
                kept_HW = draw_mask(self.config, self.encoder.image_size, generator)
                alone = self.config.mix == "mixmask"
                samples = len(views.online)
                partner_B = torch.arange(samples).flip(0) if alone else torch.randperm(samples, generator=generator)
                images, share = fill(views.online, kept_HW, partner_B), float(kept_HW.double().mean())
            mixed.append(images)
            partners.append(partner_B.to(images.device, non_blocking=True))
            shares.append(share)
        return MixedViews(
            online=views.online,
            target=views.target,
            mixed=tuple(mixed),
            partners=tuple(partners),
            shares=tuple(shares),
        )

    def losses(self, views: MixedViews, progress: float = 0.0) -> Losses:
        query_BE = self.project(views.online)
        mixed = [self.project(images) for images in views.mixed]
        with torch.no_grad():
            target_BE = self.target_projector(image_feature(self.target_encoder, second_view(views)))
        # The new keys overwrite old ones below, which the backward pass still needs.
        negatives_EQ = self.queue.keys_DQ.clone()
        temperature = self.config.temperature
        losses = {"contrast": queue_infonce(query_BE, target_BE[None], negatives_EQ, temperature).sum()}
        kinds = MIXTURES[self.config.mix]
        for kind, mixed_BE, partner_B, share in zip(kinds, mixed, views.partners, views.shares, strict=True):
            keys_KBE = torch.stack([target_BE, target_BE[partner_B]])
            own, partners = queue_infonce(mixed_BE, keys_KBE, negatives_EQ, temperature).unbind()
            losses[kind] = share * own + (1 - share) * partners
        if self.training:
            self.queue.push(gather_without_gradient(F.normalize(target_BE, dim=-1))[0])
        return losses

    def project(self, images_BCHW: Tensor) -> Tensor:
        """Queries [B, E]; batch norm sees each view apart."""
        query_BE: Tensor = self.projector(image_feature(self.encoder, images_BCHW))
        return query_BE

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_projector, self.projector, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=True)

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: MixedViews) -> Inspection:
        return Inspection()


def draw_mask(config: MixMaskConfig, size: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "H W"]:
    """One mask for a batch, True = the image itself stays; cells are stretched over the pixels."""
    cells = config.mask_cells
    if config.mask_kind == "block":
        target = int(config.mask_share * cells**2)
        kept_SS = blockwise_mask(1, (cells, cells), target, min_patches=4, generator=generator, device="cpu")
    else:
        kept_SS = torch.zeros(cells, cells, dtype=torch.bool)
        while not 0 < int(kept_SS.sum()) < cells**2:
            kept_SS = torch.rand(cells, cells, generator=generator) > config.mask_share
    stretched = F.interpolate(kept_SS.view(1, 1, cells, cells).float(), size=size, mode="nearest")
    return stretched[0, 0] > 0


def fill(
    images_BCHW: Float[Tensor, "B C H W"], kept_HW: Bool[Tensor, "H W"], partner_B: Int64[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """The images where the mask keeps them, their partners elsewhere."""
    device = images_BCHW.device
    return torch.where(
        kept_HW.to(device, non_blocking=True), images_BCHW, images_BCHW[partner_B.to(device, non_blocking=True)]
    )


def blend(images_BCHW: Float[Tensor, "B C H W"], share: float) -> Float[Tensor, "B C H W"]:
    """Each image by `share`, and the one at the mirrored place of the batch by what is left."""
    return share * images_BCHW + (1 - share) * images_BCHW.flip(0)


def paste(images_BCHW: Float[Tensor, "B C H W"], box: tuple[int, int, int, int]) -> Float[Tensor, "B C H W"]:
    """Each image with a box (top, bottom, left, right, in pixels) from the one at the mirrored place of the batch."""
    top, bottom, left, right = box
    pasted = images_BCHW.clone()
    pasted[:, :, top:bottom, left:right] = images_BCHW.flip(0)[:, :, top:bottom, left:right]
    return pasted


def unmix(
    images_BCHW: Float[Tensor, "B C H W"], config: MixMaskConfig, generator: torch.Generator
) -> tuple[Float[Tensor, "B C H W"], float]:
    """Un-Mix's mixture with the mirrored batch (Shen et al. 2022): a blend, or a box; and the image's own share."""
    draw = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    share = float(draw.beta(config.unmix_beta, config.unmix_beta))
    if draw.random() < config.unmix_global:
        return blend(images_BCHW, share), share
    sides = images_BCHW.shape[-2:]
    # A box of the partner's share of the area, around a place anywhere, cut off at the edges.
    ends: list[int] = []
    for side in sides:
        half, middle = int(side * (1 - share) ** 0.5) // 2, int(draw.integers(side))
        ends += [max(0, middle - half), min(side, middle + half)]
    top, bottom, left, right = ends
    return paste(images_BCHW, (top, bottom, left, right)), 1 - (bottom - top) * (right - left) / (sides[0] * sides[1])
