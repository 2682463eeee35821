"""mc-BEiT: Multi-choice Discretization for Image BERT Pre-training (Li et al., ECCV 2022, arXiv 2203.15371).

A hidden patch need not have one right code: the target is the tokenizer's whole distribution, smoothed by a temperature
and mixed with those of the patches that the model itself finds alike.

Shape legend: B samples, N patches, L = prefix + N tokens, M hidden patches of a sample, V codes, D width.

Formula: with t the tokenizer's logits, f the encoder's patch features, q the head's logits,
    p = softmax(t / T)
    W = row-softmax(cos(f_j, f_i) / S)
    target_j = (1 - omega) p_j + omega sum_i W_ji p_i
    loss = mean over hidden j of -sum_v target_jv log softmax(q_j)_v

No authors' code was available to check against; tested against its formulas. Read in the authors' code, but not
compared with it in numbers: all of the above. Where that code differs from the paper:
- the gradient also flows through W, that is, features may move to make targets easier (`similarity_gradient`);
- f are taken after the final norm of all patches, hidden ones included;
- the command line's masks are blockwise by default, the paper's random; T could warm up, but does not;
- no colour is changed. Their tokenizer is a VQGAN; here it is any (kind vq of `unmask tokenizer train DATA`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig, hidden_positions
from unmask.methods.base import (
    Inspection,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    one_crop,
    shared_views,
)
from unmask.methods.tokens import TokenMethodConfig, check_tokenizer, load_tokenizer, token_head
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.objectives.soft_tokens import multi_choice_loss, patch_similarity
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views, denormalise


@dataclass(frozen=True)
class ChoiceViews(Views):
    """Views with the tokenizer's probability of every code at each patch."""

    choices_BNV: Float[Tensor, "B N V"] = field(kw_only=True)


@dataclass(frozen=True, kw_only=True)
class McBEiTConfig(TokenMethodConfig):
    """Knobs of mc-BEiT; the recipe is BEiT's where the authors give none."""

    encoder: Annotated[EncoderConfig, Doc("ViT with shared relative positions and layer scale. [code]")] = (
        EncoderConfig(position="relative", layer_scale=0.1)
    )
    mask: Annotated[MaskConfig, Doc("Single patches at random, 75 %. [paper]")] = MaskConfig(kind="random", ratio=0.75)
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.08, 1.0)
    temperature: Annotated[float, Doc("T, of the tokenizer's distribution. [code]")] = 4.0
    omega: Annotated[float, Doc("Share of alike patches in a target. [code]")] = 0.2
    similarity_temperature: Annotated[float, Doc("S, of the similarity of patches. [code]")] = 1.0
    similarity_gradient: Annotated[bool, Doc("Whether the gradient flows through that similarity. [code]")] = True
    optimizer: Annotated[OptimizerConfig, Doc("lr is absolute, for batches of 2048. [as BEiT; betas: code]")] = (
        OptimizerConfig(lr=1.5e-3, lr_batch=None, betas=(0.9, 0.98), warmup_epochs=10, min_lr=1e-5, clip=3.0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (
            ("temperature", self.temperature),
            ("similarity_temperature", self.similarity_temperature),
        ):
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not 0 <= self.omega <= 1:
            raise ValueError(f"omega is a share, within 0 and 1, got {self.omega}")


class McBEiT(Method[ChoiceViews]):
    """Tell how much of each code a hidden patch is (Li et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = McBEiTConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="mc-BEiT",
        idea="Let a hidden patch be several visual words at once, and share the choices of patches like it.",
        paper="arXiv 2203.15371",
        year=2022,
        family="masked",
        online_input="mask tokens",
        target="distribution of a frozen tokenizer, mixed by own similarity",
        objective="soft cross-entropy on hidden patches",
    )

    def __init__(self, config: McBEiTConfig) -> None:
        super().__init__()
        self.config: McBEiTConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=True)
        self.tokenizer, vocabulary = load_tokenizer(config)
        self.head = token_head(self.encoder.width, vocabulary)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> ChoiceViews:
        tokenizer, config = check_tokenizer(self.tokenizer), self.config
        views = shared_views(batch, self.encoder, config, colour=None)
        logits_BNV = tokenizer.logits_for(denormalise(views.online, config.mean, config.std), self.encoder.grid)
        choices_BNV = (logits_BNV / config.temperature).softmax(dim=-1)
        return ChoiceViews(online=views.online, mask_BN=views.mask_BN, choices_BNV=choices_BNV)

    def losses(self, views: ChoiceViews, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        features_BND = self.encoder.patches(self.encoder(views.online, replace_BN=mask_BN))
        positions_BM, hidden_BM = hidden_positions(mask_BN)
        logits_BMV = self.head(features_BND.gather(1, positions_BM[..., None].expand(-1, -1, self.encoder.width)))
        similarity_BMN = patch_similarity(
            features_BND if self.config.similarity_gradient else features_BND.detach(),
            positions_BM,
            self.config.similarity_temperature,
        )
        loss = multi_choice_loss(
            logits_BMV, views.choices_BNV, similarity_BMN, positions_BM, hidden_BM, self.config.omega
        )
        return {"choices": loss}

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith(("cls_token", "pos_embed"))))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: ChoiceViews) -> Inspection:
        return Inspection()
