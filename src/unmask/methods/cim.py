"""CIM: Corrupted Image Modeling for Self-Supervised Visual Pre-Training (Fang et al., ICLR 2023, arXiv 2202.03382).

A small BEiT (the generator) fills hidden patches with codes that it samples, a frozen tokenizer paints an image from
them, and the encoder that is kept (the enhancer) sees this corrupted image whole: it restores the original pixels
(ResPix) or tells for each patch whether its code was replaced (RevDet).

Shape legend: B samples, C channels, H x W pixels, N patches, M hidden patches of the batch, V codes, K = p*p*C values.

Formula:
    t = codes of the image;  g = generator(image with mask tokens);  s ~ softmax(g) where hidden, s = t elsewhere
    c = image painted from s by the frozen tokenizer
    token loss = mean over hidden patches of cross-entropy(g, t)
    ResPix: mean over all values of (linear(encoder(c)) - normalised image)^2, where each pixel is normalised by the
        mean and deviation of the window around it
    RevDet: mean over all patches of binary cross-entropy(linear(encoder(c)), s != t)
    loss = token loss + weight x (ResPix or RevDet);  sampling lets no gradient through, so each network has its own

No authors' code was available to check against; tested against its formulas. Known from the paper's abstract and
published summaries: generator and enhancer are trained together, the generator is a small trainable BEiT with a frozen
tokenizer, codes are sampled, the enhancer restores all original pixels or detects replaced tokens, and the generator is
thrown away.
Unverified: ResPix's squared error and its window of 8 pixels over all channels; that a sample which hits the true code
counts as not replaced; weights of 1 (ResPix) and 10 (RevDet); 110 of 196 patches hidden at random; the generator's 4
blocks of width 384. The paper's enhancer may also be a ResNet; here it is any encoder of tokens. The painted image is
resized where the tokenizer's stride is not the patch size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig
from unmask.methods.base import (
    Inspection,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    one_crop,
)
from unmask.methods.tokens import (
    TokenMethodConfig,
    TokenViews,
    hidden_token_loss,
    load_tokenizer,
    token_head,
    token_views,
)
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.tokenizers.base import PaintingTokenizer
from unmask.objectives.reconstruction import patchify, unpatchify
from unmask.objectives.windows import window_statistics
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional
from unmask.views import generators, normalise_


@dataclass(frozen=True)
class CorruptionViews(TokenViews):
    """Views with the chances by which the generator's codes are drawn, uniform on [0, 1)."""

    chance_BN: Float[Tensor, "B N"] = field(kw_only=True)


@dataclass(frozen=True, kw_only=True)
class CIMConfig(TokenMethodConfig):
    """Knobs of CIM."""

    encoder: Annotated[EncoderConfig, Doc("The enhancer, with BEiT's positions and layer scale. [as BEiT]")] = (
        EncoderConfig(position="relative", layer_scale=0.1, drop_path=0.1)
    )
    generator_width: Annotated[int, Doc("Width of the generator's tokens. [unverified]")] = 384
    generator_depth: Annotated[int, Doc("Blocks of the generator. [unverified]")] = 4
    generator_heads: Annotated[int, Doc("Attention heads of the generator. [unverified]")] = 6
    mask: Annotated[MaskConfig, Doc("Single patches at random, 110 of 196. [paper: 100 to 120; unverified]")] = (
        MaskConfig(kind="random", ratio=0.56)
    )
    objective: Annotated[
        Literal["respix", "revdet"], Doc("respix: restore pixels; revdet: tell which codes were replaced. [paper]")
    ] = "respix"
    window: Annotated[int, Doc("Side, in pixels, of the window by which ResPix normalises. [unverified]")] = 8
    weight: Annotated[
        float | None, Doc("Weight of the enhancer's loss; None: 1 for respix, 10 for revdet. [unverified]")
    ] = None
    optimizer: Annotated[OptimizerConfig, Doc("1.5e-3 per 2048 images. [BEiT's; unverified]")] = OptimizerConfig(
        lr=1.5e-3, lr_batch=2048, betas=(0.9, 0.98), warmup_epochs=10, min_lr=1e-5, clip=3.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 2:
            raise ValueError(f"window must be at least 2 pixels, got {self.window}")
        if self.weight is not None and self.weight < 0:
            raise ValueError(f"weight must be 0 or more, got {self.weight}")


class CIM(Method[CorruptionViews]):
    """Restore an image, or find its replaced patches, after a small BEiT has filled in some (Fang et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = CIMConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="CIM",
        idea="A small BEiT fills patches with plausible fakes; the encoder sees the result whole and mends it.",
        paper="arXiv 2202.03382",
        year=2023,
        family="masked",
        online_input="whole image, corrupted by a generator",
        target="pixels normalised by sliding windows, or which patches were replaced; codes for the generator",
        objective="squared error or binary cross-entropy on all patches; cross-entropy for the generator",
    )

    def __init__(self, config: CIMConfig) -> None:
        super().__init__()
        self.config: CIMConfig = config
        tokenizer, vocabulary = load_tokenizer(config)
        if not isinstance(tokenizer, PaintingTokenizer):
            raise ValueError(
                "CIM paints images from codes, which this tokenizer cannot; train one of kind dvae or vq with "
                "`unmask tokenizer train DATA`"
            )
        self.tokenizer = tokenizer
        self.encoder = build_encoder(config.encoder, mask_token=False)
        height, width = self.encoder.patch
        outputs = height * width * config.encoder.channels if config.objective == "respix" else 1
        self.head = nn.Linear(self.encoder.width, outputs)
        small = replace(
            config.encoder,
            width=config.generator_width,
            depth=config.generator_depth,
            heads=config.generator_heads,
            drop_path=0.0,
        )
        self.generator = build_encoder(small, mask_token=True)
        self.generator_head = token_head(self.generator.width, vocabulary)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> CorruptionViews:
        views = token_views(batch, self.encoder, self.config, self.tokenizer, colour=None)
        # A seed of their own: chances drawn from the masks' generator would be the noise that made the masks.
        host, _ = generators(batch.seed, "cpu")
        _, device = generators(int(torch.randint(2**63 - 1, (), generator=host)), views.online.device)
        chance_BN = torch.rand(views.token_ids_BN.shape, generator=device, device=views.online.device)
        return CorruptionViews(
            online=views.online, mask_BN=views.mask_BN, token_ids_BN=views.token_ids_BN, chance_BN=chance_BN
        )

    def losses(self, views: CorruptionViews, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        logits_MV = self._guess(views)
        sampled_BN = self._sample(logits_MV, views)
        tokens_BND = self.encoder.patches(self.encoder(self.paint(sampled_BN).to(views.online.dtype)))
        if self.config.objective == "respix":
            mean, deviation = window_statistics(views.online, self.config.window)
            target_BNK = patchify((views.online - mean) / deviation, self.encoder.patch)
            enhancer = F.mse_loss(self.head(tokens_BND).to(target_BNK.dtype), target_BNK)
            weight = 1.0 if self.config.weight is None else self.config.weight
            name = "pixels"
        else:
            replaced_BN = (sampled_BN != views.token_ids_BN).to(views.online.dtype)
            logits_BN = self.head(tokens_BND).squeeze(-1).to(replaced_BN.dtype)
            enhancer = F.binary_cross_entropy_with_logits(logits_BN, replaced_BN)
            weight = 10.0 if self.config.weight is None else self.config.weight
            name = "detection"
        return {"tokens": hidden_token_loss(logits_MV, views.token_ids_BN, mask_BN), name: weight * enhancer}

    def _guess(self, views: CorruptionViews) -> Tensor:
        """The generator's logits [M, V] of the hidden patches' codes."""
        mask_BN = check_mask(views.mask_BN)
        tokens_BND = self.generator.patches(self.generator(views.online, replace_BN=mask_BN))
        return self.generator_head(tokens_BND[mask_BN])

    @torch.no_grad()
    def _sample(self, logits_MV: Tensor, views: CorruptionViews) -> Tensor:
        """The image's codes [B, N], those of hidden patches drawn from the generator's distribution."""
        mask_BN = check_mask(views.mask_BN)
        drawn_M = draw_codes(logits_MV, views.chance_BN[mask_BN])
        return views.token_ids_BN.masked_scatter(mask_BN, drawn_M)

    @torch.no_grad()
    def paint(self, ids_BN: Int64[Tensor, "B N"]) -> Float[Tensor, "B C H W"]:
        """Normalised images of the encoder's size, painted from one code a patch."""
        size = self.encoder.image_size
        with torch.autocast(ids_BN.device.type, enabled=False):
            painted_BCHW = self.tokenizer.decode(ids_BN, self.encoder.grid)
            if painted_BCHW.shape[2:] != size:
                painted_BCHW = F.interpolate(painted_BCHW, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        return normalise_(painted_BCHW, self.config.mean, self.config.std)

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith(("cls_token", "pos_embed"))))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: CorruptionViews) -> Inspection:
        if self.config.objective == "revdet":
            return Inspection()
        corrupted_BCHW = self.paint(self._sample(self._guess(views), views))
        prediction_BNK = self.head(self.encoder.patches(self.encoder(corrupted_BCHW)))
        mean, deviation = window_statistics(views.online, self.config.window)
        restored_BCHW = unpatchify(prediction_BNK, self.encoder.patch, self.encoder.grid)
        return Inspection(reconstruction_BCHW=restored_BCHW * deviation + mean)


def draw_codes(logits_MV: Float[Tensor, "M V"], chance_M: Float[Tensor, " M"]) -> Int64[Tensor, " M"]:
    """One code a row from the softmax of its logits: the first whose cumulated probability exceeds the chance."""
    cumulated_MV = logits_MV.float().softmax(dim=-1).cumsum(dim=-1)
    # Rounding can leave the last sum below 1.
    last = logits_MV.shape[1] - 1
    return torch.searchsorted(cumulated_MV, chance_M[:, None].float(), right=True).squeeze(1).clamp_(max=last)
