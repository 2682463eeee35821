"""BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers (Peng et al. 2022, arXiv 2208.06366).

BEiT with codes that a teacher's features gave meaning, and a bottleneck: two shallow blocks must tell the hidden codes
too, from the last class token and the patch tokens of an early block, so that the class token gathers what those lack.

Shape legend: B samples, N patches, L = prefix + N tokens, M hidden patches of the batch, V codes, D width.

Formula: with x the tokens after the last block, e those after the early block, h = head after the final norm,
    losses = CE(h(x)[hidden], codes[hidden]) + CE(h(S(x_class, e_patches))[hidden], codes[hidden])
where S are the shallow blocks, which share the encoder's relative positions; norm and head are shared, too.

No authors' code was available to check against; tested against its formulas. Read in the authors' code, but not
compared with it in numbers: the shared norm and head, the sum of both losses, the early block's output before any norm,
the stochastic depth and the start of the shallow blocks, which are those of blocks early + 1 and early + 2. The paper's
tokenizer is one that learnt CLIP's features (`unmask tokenizer train DATA` makes one of any teacher).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
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
from unmask.models.build import build_vit
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional


@dataclass(frozen=True, kw_only=True)
class BEiTv2Config(TokenMethodConfig):
    """Knobs of BEiT v2; defaults are the authors' for ViT-B in 1600 epochs."""

    encoder: Annotated[EncoderConfig, Doc("ViT with shared relative positions; 300 epochs: no drop path. [README]")] = (
        EncoderConfig(position="relative", layer_scale=0.1, drop_path=0.1)
    )
    mask: Annotated[MaskConfig, Doc("Blocks of patches, up to 75 of 196. [README]")] = MaskConfig(
        kind="blockwise", ratio=0.382
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [README]")] = (0.2, 1.0)
    colour: Annotated[ColourConfig, Doc("Perturbation that encoder and tokenizer both see. [as BEiT; unverified]")] = (
        JITTER
    )
    early_blocks: Annotated[
        int | None, Doc("Blocks before the patch tokens are taken; None: three quarters. [README: 9 of 12, 21 of 24]")
    ] = None
    shallow_blocks: Annotated[int, Doc("Blocks behind the bottleneck. [README]")] = 2
    optimizer: Annotated[
        OptimizerConfig, Doc("lr is absolute, for batches of 2048; 300 epochs: second beta 0.98. [README]")
    ] = OptimizerConfig(lr=1.5e-3, lr_batch=None, betas=(0.9, 0.999), warmup_epochs=10, min_lr=1e-5, clip=3.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shallow_blocks < 1:
            raise ValueError(f"shallow_blocks must be at least 1, got {self.shallow_blocks}")


class BEiTv2(Method[TokenViews]):
    """Tell hidden codes twice: from all blocks, and from the class token beside early patches (Peng et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = BEiTv2Config
    info: ClassVar[MethodInfo] = MethodInfo(
        title="BEiT v2",
        idea="Name hidden visual words that have meaning, once more through the bottleneck of the class token.",
        paper="arXiv 2208.06366",
        year=2022,
        family="masked",
        online_input="mask tokens",
        target="codes of a frozen tokenizer",
        objective="cross-entropy on hidden patches, twice",
    )

    def __init__(self, config: BEiTv2Config) -> None:
        super().__init__()
        self.config: BEiTv2Config = config
        self.encoder = build_vit(config.encoder, mask_token=True)
        if not self.encoder.has_class_token:
            raise ValueError(f"BEiT v2 needs an encoder with a class token, which {config.encoder.name!r} has not")
        depth = self.encoder.depth
        self.early = max(1, depth * 3 // 4) if config.early_blocks is None else config.early_blocks
        if not 1 <= self.early <= depth:
            raise ValueError(f"early_blocks must lie between 1 and the encoder's {depth} blocks, got {self.early}")
        # Blocks of the encoder's own kind, with the start and the stochastic depth that their place gives them.
        end = self.early + config.shallow_blocks
        longer = build_vit(replace(config.encoder, depth=max(depth, end)), mask_token=False)
        self.shallow = longer.vit.blocks[self.early : end]
        self.tokenizer, vocabulary = load_tokenizer(config)
        self.head = token_head(self.encoder.width, vocabulary)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> TokenViews:
        return token_views(batch, self.encoder, self.config, self.tokenizer, self.config.colour)

    def losses(self, views: TokenViews, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        encoder = self.encoder
        early_BLD, last_BLD = encoder.block_outputs(
            views.online, (self.early - 1, encoder.depth - 1), replace_BN=mask_BN
        )
        bottleneck_BLD = torch.cat([last_BLD[:, : encoder.prefix], encoder.patches(early_BLD)], dim=1)
        shallow_BLD = encoder.further(self.shallow, bottleneck_BLD)
        return {
            "tokens": self._loss(last_BLD, views.token_ids_BN, mask_BN),
            "bottleneck": self._loss(shallow_BLD, views.token_ids_BN, mask_BN),
        }

    def _loss(self, tokens_BLD: Tensor, token_ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        """Cross-entropy of the hidden codes from tokens before the final norm."""
        normed_BLD = self.encoder.norm(tokens_BLD)
        return hidden_token_loss(self.head(self.encoder.patches(normed_BLD)[mask_BN]), token_ids_BN, mask_BN)

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith(("cls_token", "pos_embed"))))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: TokenViews) -> Inspection:
        return Inspection()
