"""iBOT: Image BERT Pre-Training with Online Tokenizer (Zhou et al., ICLR 2022, arXiv 2111.07832).

DINO, and beside it masked image modelling with the moving target as tokenizer: a hidden patch must be assigned to the
prototypes that the target chooses for it when it sees the whole crop.

Shape legend: B samples, V online views (2 large, then the small ones), G = 2B large crops (view-major), N patches, L =
prefix + N tokens, M hidden patches of the large crops, D encoder width, E head width, K prototypes.

Formula:
    whole = DINO's loss on class tokens, where the online network sees its large crops with hidden patches
    patches = mean over large crops of the mean over a crop's hidden patches of - sum_k t_k log p_k, where p is the
        online network's assignment and t the target's, of the same patch of the same crop
    loss = weight · whole + patch_weight · patches

Where the authors' code differs from the paper, or from this code:
- a crop hides nothing with probability .5, else a share drawn from .3 ± .2; crops without hidden patches stay in the
  mean over crops as zeros;
- prototypes for crops and patches are the same ones only with `--shared_head true`, as the README's commands have it;
  in the argparse's defaults the online network's differ and the target's do not (`patch_out`, `share_target`);
- patches have a centre and a temperature of their own; the centre follows all patches, hidden or not;
- class token, positions, mask token, and lengths of prototypes are decayed; clipping and the frozen prototypes are as
  in DINO, and so are the differences there.
Logits are computed for hidden patches alone, and the mean over all patches in front of the prototypes, which are
linear: the numbers are the authors', at a fraction of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.masking import Mask, VaryingMaskConfig, varying_mask
from unmask.methods.base import Inspection, Method, MethodConfig, MethodInfo, check_mask
from unmask.methods.dino import DINOConfig
from unmask.methods.multi_crop import (
    MultiCropViews,
    check_local_crops,
    multi_crop_views,
    multi_crops,
)
from unmask.methods.siamese import second_view
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.prototypes import PrototypeHead, PrototypeHeadConfig, Prototypes
from unmask.models.target import ema_update_, frozen_copy, stop_dropping_
from unmask.objectives.clustering import centred_softmax, cross_view_entropy, hidden_patch_entropy, next_centre
from unmask.optimisation import ParameterRule
from unmask.schedule import Schedule
from unmask.trainee import Losses, one_dimensional
from unmask.views import generators


@dataclass(frozen=True)
class IBOTViews(MultiCropViews):
    """DINO's views; `mask_BN` hides patches of the first large crop, `target_mask_BN` those of the second (when the
    online network sees it: the target sees everything)."""

    target_mask_BN: Mask | None = None


@dataclass(frozen=True, kw_only=True)
class IBOTConfig(DINOConfig):
    """Knobs of iBOT; defaults are the README's run of ViT-S over 800 epochs."""

    mask: Annotated[VaryingMaskConfig, Doc("Which patches of the large crops are hidden. [README]")] = (
        VaryingMaskConfig()
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a large crop covers. [README]")] = (
        0.25,
        1.0,
    )
    local_crops: Annotated[int, Doc("Number of small crops of an image; 0: none. [README]")] = 10
    local_crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a small crop covers. [README]")] = (
        0.05,
        0.25,
    )
    head: Annotated[PrototypeHeadConfig, Doc("Head of both networks, with the prototypes. [README]")] = (
        PrototypeHeadConfig(out=8192)
    )
    patch_out: Annotated[
        int | None, Doc("Number of the patches' own prototypes; None: those of the crops serve them too. [README]")
    ] = None
    share_target: Annotated[
        bool, Doc("Whether the target uses one set of prototypes even where `patch_out` gives two. [argparse: yes]")
    ] = False
    target_temperature: Annotated[
        Schedule, Doc("Temperature of the target's assignment of crops. [README: .04 to .07 in 30 of 800 epochs]")
    ] = Schedule(kind="linear", start=0.04, end=0.07, until=30 / 800)
    patch_target_temperature: Annotated[
        Schedule, Doc("Temperature of the target's assignment of patches. [argparse]")
    ] = Schedule(kind="linear", start=0.04, end=0.07, until=30 / 800)
    patch_centre_momentum: Annotated[float, Doc("Momentum of the patches' centre. [paper and code]")] = 0.9
    freeze_last: Annotated[
        float, Doc("Share of the run during which the prototypes are left alone. [code: the first epoch, of 800]")
    ] = 1 / 800
    weight: Annotated[float, Doc("Weight of the loss of crops. [paper and code]")] = 1.0
    patch_weight: Annotated[float, Doc("Weight of the loss of patches. [paper and code]")] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.patch_centre_momentum <= 1:
            raise ValueError(f"the patch centre's momentum must lie in [0, 1], got {self.patch_centre_momentum}")
        if self.share_target and self.patch_out not in (None, self.head.out):
            raise ValueError(
                f"a target with one set of prototypes needs patch_out equal to head.out, got {self.patch_out} and "
                f"{self.head.out}"
            )


class IBOT(Method[IBOTViews]):
    """DINO on crops, and on hidden patches too (Zhou et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = IBOTConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="iBOT",
        idea="DINO, and hidden patches too must choose the prototypes that the moving target, seeing them, chooses.",
        paper="arXiv 2111.07832",
        year=2022,
        family="masked + clustering",
        online_input="2 large crops with mask tokens, 10 small crops",
        target="EMA encoder's assignment of large crops and their patches",
        objective="cross-entropy over 8192 prototypes, of crops and of hidden patches",
    )
    centre: Tensor
    patch_centre: Tensor

    def __init__(self, config: IBOTConfig) -> None:
        super().__init__()
        self.config: IBOTConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=True)
        check_local_crops(self.encoder, config)
        if not self.encoder.has_class_token:
            raise ValueError(f"iBOT needs an encoder with a class token, and {config.encoder.name!r} has none")
        head = config.head
        self.head = PrototypeHead(self.encoder.width, head)
        self.patch_last: Prototypes | None = None
        if config.patch_out is not None:
            self.patch_last = Prototypes(head.bottleneck, config.patch_out, fixed_length=head.fixed_length)
        self.target_encoder = stop_dropping_(frozen_copy(self.encoder))
        self.target_head = frozen_copy(self.head)
        self.target_patch_last: Prototypes | None = None
        if self.patch_last is not None and not config.share_target:
            self.target_patch_last = frozen_copy(self.patch_last)
        self.register_buffer("centre", torch.zeros(head.out))
        self.register_buffer("patch_centre", torch.zeros(config.patch_out or head.out))

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return multi_crops(self.encoder, self.config)

    def make_views(self, batch: Batch) -> IBOTViews:
        config = self.config
        (first, second), local = multi_crop_views(
            batch,
            self.encoder,
            config,
            colours=(config.online_colour, config.target_colour),
            local_colour=config.local_colour,
        )
        _, generator = generators(batch.seed, first.device)
        mask_GN = varying_mask(config.mask, 2 * len(first), self.encoder.grid, generator=generator, device=first.device)
        mask_BN, target_mask_BN = mask_GN.chunk(2)
        return IBOTViews(online=first, target=second, mask_BN=mask_BN, local=local, target_mask_BN=target_mask_BN)

    def losses(self, views: IBOTViews, progress: float = 0.0) -> Losses:
        config, B = self.config, len(views.online)
        images_GCHW = torch.cat([views.online, second_view(views)])
        mask_GN = torch.cat([check_mask(views.mask_BN), check_mask(views.target_mask_BN)])
        # Where patches are hidden, found before there is much for the device to finish first.
        hidden = mask_GN.nonzero(as_tuple=True)

        with torch.no_grad():
            target_GLE = self.target_head.features(self.target_encoder(images_GCHW))
            target_QBK = self.target_head.last(target_GLE[:, 0]).unflatten(0, (2, B))
            patches_GNE = self.target_encoder.patches(target_GLE)
            target_MK = self._target_patch_prototypes(patches_GNE[hidden])
            mean_K = self._target_patch_prototypes(patches_GNE.mean(dim=(0, 1)))
            assigned_QBK = centred_softmax(target_QBK, self.centre, config.target_temperature.at(progress))
            assigned_MK = centred_softmax(target_MK, self.patch_centre, config.patch_target_temperature.at(progress))
            if self.training:
                self.centre.copy_(next_centre(self.centre, target_QBK.mean(dim=(0, 1)), config.centre_momentum))
                self.patch_centre.copy_(next_centre(self.patch_centre, mean_K, config.patch_centre_momentum))

        whole_GE, patches_ME = self._features(self.encoder(images_GCHW, replace_BN=mask_GN), hidden)
        whole_E = [whole_GE]
        if views.local is not None:
            none = hidden[0][:0]
            whole_E.append(self._features(self.encoder(views.local.flatten(0, 1)), (none, none))[0])
        online_VBK = self.head.last(torch.cat(whole_E)).unflatten(0, (-1, B))
        online_MK = self.patch_prototypes(patches_ME)
        whole = cross_view_entropy(online_VBK, assigned_QBK, config.temperature)
        patches = hidden_patch_entropy(online_MK, assigned_MK, hidden[0], 2 * B, config.temperature)
        return {"assignment": config.weight * whole, "patch_assignment": config.patch_weight * patches}

    def _features(self, tokens_GLD: Tensor, chosen: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """What the online prototypes are compared with: class tokens [G, E] and chosen patches (crop, place) [M, E]."""
        if self.config.head.norm == "batch":  # its statistics are those of all tokens
            features_GLE = self.head.features(tokens_GLD)
            return features_GLE[:, 0], self.encoder.patches(features_GLE)[chosen]
        class_GD, patches_MD = tokens_GLD[:, 0], self.encoder.patches(tokens_GLD)[chosen]
        class_GE, patches_ME = self.head.features(torch.cat([class_GD, patches_MD])).split(
            [len(class_GD), len(patches_MD)]
        )
        return class_GE, patches_ME

    def patch_prototypes(self, features: Tensor) -> Tensor:
        """The online network's logits of patches, from what its head makes of them."""
        return self.head.last(features) if self.patch_last is None else self.patch_last(features)

    def _target_patch_prototypes(self, features: Tensor) -> Tensor:
        last = self.target_head.last if self.target_patch_last is None else self.target_patch_last
        return last(features)

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_head, self.head, momentum)
        if self.target_patch_last is not None and self.patch_last is not None:
            ema_update_(self.target_patch_last, self.patch_last, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        last = name.startswith(("head.last.", "patch_last."))
        frozen_until = self.config.freeze_last if last else 0.0
        return ParameterRule(decay=not one_dimensional(name, parameter), frozen_until=frozen_until)

    def exported(self) -> Encoder:
        return self.target_encoder if self.config.export == "target" else self.encoder

    def inspect(self, views: IBOTViews) -> Inspection:
        return Inspection()
