"""BEiT: BERT Pre-Training of Image Transformers (Bao et al., ICLR 2022, arXiv 2106.08254).

Mask tokens stand for hidden patches in the encoder; one linear layer tells the code which a frozen tokenizer gives to
each hidden patch.

Shape legend: B samples, N patches, L = prefix + N tokens, M hidden patches of the batch, V codes, D width.

Where the authors' code differs from the paper: blockwise masks stop when ten proposals in a row fail, so images hide
about 68 to 75 of 196 patches, and the loss is one mean over all of them; the mask token and the table of relative
positions are decayed; relative positions take the place of absolute ones. Their tokenizer is DALL-E's, on a copy of the
crop of half its side; here it is any tokenizer, on a copy at which it has one code a patch.
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
class BEiTConfig(TokenMethodConfig):
    """Knobs of BEiT; defaults are the authors' for ViT-B."""

    encoder: Annotated[EncoderConfig, Doc("ViT with shared relative positions, layer scale, drop path. [README]")] = (
        EncoderConfig(position="relative", layer_scale=0.1, drop_path=0.1)
    )
    mask: Annotated[MaskConfig, Doc("Blocks of patches, up to 75 of 196. [code]")] = MaskConfig(
        kind="blockwise", ratio=0.382
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.08, 1.0)
    colour: Annotated[ColourConfig, Doc("Perturbation that encoder and tokenizer both see. [code]")] = JITTER
    optimizer: Annotated[OptimizerConfig, Doc("lr is absolute, for batches of 2048 in 800 epochs. [README]")] = (
        OptimizerConfig(lr=1.5e-3, lr_batch=None, betas=(0.9, 0.999), warmup_epochs=10, min_lr=1e-5, clip=3.0)
    )


class BEiT(Method[TokenViews]):
    """Tell the tokenizer's code of every hidden patch (Bao et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = BEiTConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="BEiT",
        idea="Put mask tokens in place of patches and name the visual word that each of them hides.",
        paper="arXiv 2106.08254",
        year=2022,
        family="masked",
        online_input="mask tokens",
        target="codes of a frozen tokenizer",
        objective="cross-entropy on hidden patches",
    )

    def __init__(self, config: BEiTConfig) -> None:
        super().__init__()
        self.config: BEiTConfig = config
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
        return {"tokens": hidden_token_loss(self.logits(views), views.token_ids_BN, mask_BN)}

    def logits(self, views: TokenViews) -> Tensor:
        """Logits [M, V] of the codes of all hidden patches, by image and then by patch."""
        mask_BN = check_mask(views.mask_BN)
        tokens_BND = self.encoder.patches(self.encoder(views.online, replace_BN=mask_BN))
        return self.head(tokens_BND[mask_BN])

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith(("cls_token", "pos_embed"))))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: TokenViews) -> Inspection:
        return Inspection()
