"""PeCo: Perceptual Codebook for BERT Pre-training of Vision Transformers (Dong et al., AAAI 2023, arXiv 2111.12710).

BEiT whose codes come from a tokenizer that was trained to look right to a self-supervised ViT, not only to agree in
pixels: `unmask tokenizer train DATA --kind vq --teacher ENCODER`. Pre-training itself is BEiT's.

Shape legend: B samples, N patches, L = prefix + N tokens, M hidden patches of the batch, V codes.

Formula: with h the head's logits of the hidden patches,
    loss = CE(h, codes[hidden])

No authors' code was available to check against; tested against its formulas. Unverified, from the paper as others cite
it: masks of 40 %, and that all else is BEiT's recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
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
    JITTER,
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
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional


@dataclass(frozen=True, kw_only=True)
class PeCoConfig(TokenMethodConfig):
    """Knobs of PeCo; defaults are BEiT's but for the mask."""

    encoder: Annotated[EncoderConfig, Doc("ViT with shared relative positions, layer scale, drop path. [as BEiT]")] = (
        EncoderConfig(position="relative", layer_scale=0.1, drop_path=0.1)
    )
    mask: Annotated[MaskConfig, Doc("Blocks of patches, 40 %. [paper; unverified]")] = MaskConfig(
        kind="blockwise", ratio=0.4
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [as BEiT]")] = (0.08, 1.0)
    colour: Annotated[ColourConfig, Doc("Perturbation that encoder and tokenizer both see. [as BEiT]")] = JITTER
    optimizer: Annotated[OptimizerConfig, Doc("lr is absolute, for batches of 2048. [as BEiT]")] = OptimizerConfig(
        lr=1.5e-3, lr_batch=None, betas=(0.9, 0.999), warmup_epochs=10, min_lr=1e-5, clip=3.0
    )


class PeCo(Method[TokenViews]):
    """Tell the perceptual code of every hidden patch (Dong et al. 2023)."""

    Config: ClassVar[type[MethodConfig]] = PeCoConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="PeCo",
        idea="Name hidden visual words of a codebook that keeps what the eye sees.",
        paper="arXiv 2111.12710",
        year=2023,
        family="masked",
        online_input="mask tokens",
        target="codes of a frozen perceptual tokenizer",
        objective="cross-entropy on hidden patches",
    )

    def __init__(self, config: PeCoConfig) -> None:
        super().__init__()
        self.config: PeCoConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=True)
        self.tokenizer, vocabulary = load_tokenizer(config)
        self.head = token_head(self.encoder.width, vocabulary)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> TokenViews:
        return token_views(batch, self.encoder, self.config, self.tokenizer, self.config.colour)

    def losses(self, views: TokenViews, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        tokens_BND = self.encoder.patches(self.encoder(views.online, replace_BN=mask_BN))
        return {"tokens": hidden_token_loss(self.head(tokens_BND[mask_BN]), views.token_ids_BN, mask_BN)}

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith(("cls_token", "pos_embed"))))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: TokenViews) -> Inspection:
        return Inspection()
