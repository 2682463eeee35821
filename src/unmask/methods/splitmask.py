"""SplitMask: Are Large-scale Datasets Necessary for Self-Supervised Pre-training? (El-Nouby et al., arXiv 2112.10740).

The patches of an image are split into two halves; the encoder sees each half alone, a shallow decoder names the visual
words of the other half, and the two decoded images must find each other in the batch.

Shape legend: B samples, N patches, T = 2B halves (the first ones of all images, then the second ones), L = prefix +
visible tokens, D decoder width, M hidden patches of all halves, V codes.

Formula:
    A, B = two random disjoint halves of the patches
    d_A = decoder(encoder(patches of A), mask tokens elsewhere);  d_B likewise
    token loss = mean over A's hidden patches in d_A and B's hidden ones in d_B of cross-entropy(head(d), token)
    match loss = NT-Xent of mean over patches of d_A and mean over patches of d_B: each finds the other among both
        halves of all images
    loss = token loss + match loss

No authors' code was available to check against; tested against its formulas. Known from the paper's published
summaries: split, inpaint and match; a decoder of 2 layers; tokens of DALL-E, or simply the code of highest cosine with
the patch in pixel space; average pooling of the decoder's outputs; negatives are the representations of the other
images of the batch. Unverified: the temperature, equal weights, pooling over all patches rather than one half's, no
projector, single patches at random, and the optimizer, which is BEiT's. Without a tokenizer, tokens are the nearest of
random directions of the normalised pixels ("random projection", one of the paper's simple tokenizers as far as known).
Where the number of patches is odd, one patch is hidden from both halves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig, disjoint_masks, masked_count, take_hidden
from unmask.methods.base import (
    Inspection,
    Method,
    MethodConfig,
    MethodInfo,
    check_size,
    one_crop,
    only_crop,
)
from unmask.methods.tokens import TokenViews
from unmask.models.build import build_encoder
from unmask.models.decoder import DecoderConfig, TransformerDecoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.random_codebook import RandomCodebook
from unmask.models.tokenizers.base import Tokenizer
from unmask.models.tokenizers.file import open_tokenizer
from unmask.objectives.contrastive import ntxent
from unmask.objectives.reconstruction import patchify
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional
from unmask.views import denormalise, generators, shared_crop_views


@dataclass(frozen=True)
class SplitViews(TokenViews):
    """Views whose picture is seen through two masks that share no visible patch."""

    masks_B2N: Bool[Tensor, "B 2 N"] = field(kw_only=True)


@dataclass(frozen=True, kw_only=True)
class SplitMaskConfig(MethodConfig):
    """Knobs of SplitMask."""

    encoder: Annotated[EncoderConfig, Doc("ViT with fixed sin-cos positions, Xavier init. [ours, as MAE]")] = (
        EncoderConfig(position="sincos", init="xavier")
    )
    tokenizer: Annotated[
        str | None, Doc("File of a frozen tokenizer, from `unmask tokenizer train DATA`; None: random directions.")
    ] = None
    vocabulary: Annotated[int, Doc("Number of random directions; a tokenizer brings its own. [8192 in DALL-E]")] = 8192
    codebook_seed: Annotated[int, Doc("What decides the random directions.")] = 0
    decoder: Annotated[DecoderConfig, Doc("Decoder of both halves: 2 blocks [paper]; its width is ours.")] = (
        DecoderConfig(depth=2)
    )
    temperature: Annotated[float, Doc("Temperature of the match loss. [unverified]")] = 0.2
    gathered: Annotated[
        bool, Doc("Whether the images of all ranks are negatives, or those of each rank alone. [unverified: alone]")
    ] = False
    match_weight: Annotated[float, Doc("Weight of the match loss. [unverified]")] = 1.0
    optimizer: Annotated[OptimizerConfig, Doc("1.5e-3 per 2048 images. [BEiT's; unverified]")] = OptimizerConfig(
        lr=1.5e-3, lr_batch=2048, betas=(0.9, 0.999), warmup_epochs=10, min_lr=1e-5, clip=3.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocabulary < 2:
            raise ValueError(f"a vocabulary needs at least 2 codes, got {self.vocabulary}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.match_weight < 0:
            raise ValueError(f"match_weight must be 0 or more, got {self.match_weight}")


class SplitMask(Method[SplitViews]):
    """From each half of the patches name the other half's tokens, and find the other half (El-Nouby et al. 2021)."""

    Config: ClassVar[type[MethodConfig]] = SplitMaskConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="SplitMask",
        idea="Split the patches in two; each half names the other's visual words and must find it in the batch.",
        paper="arXiv 2112.10740",
        year=2021,
        family="masked + contrastive",
        online_input="visible patches only, two disjoint halves",
        target="codes of a frozen tokenizer; the other half",
        objective="cross-entropy on hidden patches + NT-Xent",
    )

    def __init__(self, config: SplitMaskConfig) -> None:
        super().__init__()
        self.config: SplitMaskConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        self.tokenizer: Tokenizer | RandomCodebook
        if config.tokenizer is None:
            height, width = self.encoder.patch
            values = height * width * config.encoder.channels
            self.tokenizer = RandomCodebook(config.vocabulary, values, seed=config.codebook_seed)
            vocabulary = config.vocabulary
        else:
            self.tokenizer = open_tokenizer(config.tokenizer)
            vocabulary = self.tokenizer.vocabulary
        self.decoder = TransformerDecoder(
            config.decoder,
            encoder_width=self.encoder.width,
            out_width=vocabulary,
            grid=self.encoder.grid,
            prefix=self.encoder.prefix,
        )

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> SplitViews:
        crop_BCHW = only_crop(batch)
        check_size(crop_BCHW, self.encoder)
        host, device = generators(batch.seed, crop_BCHW.device)
        config = self.config
        online, _ = shared_crop_views(crop_BCHW, colour=None, mean=config.mean, std=config.std, generator=host)
        masks_B2N = disjoint_masks(len(online), self.encoder.grid, 0.5, 2, generator=device, device=crop_BCHW.device)
        hidden = masked_count(MaskConfig(ratio=0.5), self.encoder.grid)
        return SplitViews(online=online, token_ids_BN=self._tokens(online), masks_B2N=masks_B2N, hidden=hidden)

    def _tokens(self, images_BCHW: Tensor) -> Tensor:
        """The visual word [B, N] of every patch of normalised images."""
        if isinstance(self.tokenizer, RandomCodebook):
            return self.tokenizer.ids(patchify(images_BCHW, self.encoder.patch))
        pixels_BCHW = denormalise(images_BCHW, self.config.mean, self.config.std)
        return self.tokenizer.tokens_for(pixels_BCHW, self.encoder.grid)

    def losses(self, views: SplitViews, progress: float = 0.0) -> Losses:
        # First halves of all images, then second halves: one pass for both.
        masks_TN = views.masks_B2N.transpose(0, 1).flatten(0, 1)
        visible_TLD = self.encoder(views.online, drop_BN=masks_TN, hidden=views.hidden)
        decoded_TND = self.decoder(visible_TLD, masks_TN)
        logits_MV = self.decoder.predict(take_hidden(decoded_TND, masks_TN, hidden=views.hidden))
        ids_M = take_hidden(views.token_ids_BN.repeat(2, 1), masks_TN, hidden=views.hidden)
        first_BD, second_BD = decoded_TND.mean(dim=1).chunk(2)
        match = ntxent(first_BD, second_BD, self.config.temperature, gathered=self.config.gathered)
        return {
            "tokens": F.cross_entropy(logits_MV, ids_M),
            "match": self.config.match_weight * match,
        }

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: SplitViews) -> Inspection:
        return Inspection()
