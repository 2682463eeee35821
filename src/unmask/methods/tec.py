"""TEC: Towards Sustainable Self-supervised Learning (Gao et al., arXiv 2210.11016): target-enhanced conditional
pre-training.

A masked autoencoder rebuilds not pixels but what a frozen pre-trained encoder ("base model") says of the whole image:
the features of its patches, and how its most attended patches relate to all others.

Shape legend: B samples, N patches, L = prefix + visible tokens, P prefix tokens, M hidden patches of the batch,
W teacher width, D decoder width, Q queries (class token and salient patches), h heads of the teacher.

Formula:
    f = mean of the teacher's last 2 blocks, for each patch;  f' = (f - mean over patches) / deviation over patches
    a = the teacher's last attention before its softmax, from the class token and its 15 most attended patches
    x = adapter(all blocks of encoder(visible patches)): norm, groups of 3 blocks mixed, their sum normed
    feature loss  = mean over hidden patches of |decoder(x) - f'|^2 / W
    b = q(decoder'(x)) k(decoder'(x)) / sqrt(W), for the same queries, by heads
    relation loss = mean over queries and heads of cross-entropy(softmax(a / 1.8), softmax(b)), keys are patches

The authors' code (github.com/sail-sg/TEC) is public, but no golden case was recorded from it: what is here was written
after reading it and is tested against its formulas. Facts of that code that the paper's page does not tell:
- both decoders share their blocks and have their own entry, mask token, norm and exit;
- predicted relations are scaled by the whole width, not by a head's, and have as many heads as the teacher;
- relations are learnt for visible queries as well as for hidden ones, and only keys that are patches count;
- variance over patches is unbiased and 1e-6 is added to it.
Left out: the MLP through which the authors pass the class token during training ("input adapter"), which they fold into
the token afterwards; it changes the token's pace, not what the encoder can be. The class token's query falls away where
teacher or student has none. `from_teacher` is ours; the authors begin at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig, take_hidden
from unmask.methods.base import (
    Inspection,
    MaskedMethodConfig,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    one_crop,
    shared_views,
)
from unmask.models.adapter import ConditionalAdapter
from unmask.models.build import build_vit
from unmask.models.decoder import DecoderConfig, TransformerDecoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.frozen import FrozenTeacher, salient_patches
from unmask.objectives.reconstruction import mean_squared_error, normalise_patches
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views, denormalise


@dataclass(frozen=True, kw_only=True)
class TECConfig(MaskedMethodConfig):
    """Knobs of TEC; defaults are the authors' for an MAE teacher and ViT-B."""

    encoder: Annotated[EncoderConfig, Doc("MAE's ViT: fixed sin-cos positions, Xavier init. [code]")] = EncoderConfig(
        position="sincos", init="xavier"
    )
    teacher: Annotated[
        str | None, Doc("The pre-trained encoder to learn from: a run folder, an encoder file, or timm:NAME. Needed.")
    ] = None
    from_teacher: Annotated[
        bool, Doc("Start from the teacher's weights; both must be the same network. [ours; code: no]")
    ] = False
    mask: Annotated[MaskConfig, Doc("Single patches at random, 75 %. [code]")] = MaskConfig(kind="random", ratio=0.75)
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.2, 1.0)
    decoder: Annotated[DecoderConfig, Doc("Blocks of both decoders. [code]")] = DecoderConfig(depth=2)
    feature_blocks: Annotated[int, Doc("Last blocks of the teacher whose mean is the target. [code]")] = 2
    adapter_group: Annotated[int, Doc("Blocks of the encoder that the adapter mixes together. [code]")] = 3
    salient: Annotated[int, Doc("Most attended patches whose relations are learnt. [code: 15 for MAE, 9 for iBOT]")] = (
        15
    )
    relation_temperature: Annotated[
        float, Doc("What the teacher's attention is divided by. [code: 1.8 for MAE-B, 1.4 for MAE-L, 1 for iBOT]")
    ] = 1.8
    relation_weight: Annotated[float, Doc("Weight of the relation loss. [code]")] = 1.0
    optimizer: Annotated[OptimizerConfig, Doc("1.5e-4 per 256 images, 40 epochs of warm-up. [code]")] = OptimizerConfig(
        lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=40
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("feature_blocks", "adapter_group", "salient"):
            value: int = vars(self)[name]
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.relation_temperature <= 0:
            raise ValueError(f"relation_temperature must be above 0, got {self.relation_temperature}")
        if self.relation_weight < 0:
            raise ValueError(f"relation_weight must be 0 or more, got {self.relation_weight}")


@dataclass(frozen=True)
class Lesson:
    """What the teacher says of whole images: features, the patches it attends to, relations of queries to patches."""

    features_BNW: Float[Tensor, "B N W"]
    salient_BK: Int64[Tensor, "B K"]
    relations_BhQN: Float[Tensor, "B h Q N"]


class TEC(Method[Views]):
    """Rebuild a frozen teacher's features and the relations of its patches from a quarter of them (Gao et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = TECConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="TEC",
        idea="Rebuild what a frozen pre-trained encoder says of hidden patches, and how its patches relate.",
        paper="arXiv 2210.11016",
        year=2022,
        family="masked + distillation",
        online_input="visible patches only",
        target="features and attention of a frozen pre-trained encoder",
        objective="squared error on hidden patches + cross-entropy of attention",
    )

    def __init__(self, config: TECConfig) -> None:
        super().__init__()
        if config.teacher is None:
            raise ValueError(
                "TEC learns from a pre-trained encoder; name a run folder, an encoder file or timm:NAME as its teacher"
            )
        self.config: TECConfig = config
        self.encoder = build_vit(config.encoder, mask_token=False)
        grid, prefix, width = self.encoder.grid, self.encoder.prefix, self.encoder.width
        self.teacher = FrozenTeacher(config.teacher, channels=config.encoder.channels, grid=grid)
        if config.feature_blocks > self.teacher.encoder.depth:
            raise ValueError(f"the teacher has {self.teacher.encoder.depth} blocks, not {config.feature_blocks}")
        if config.from_teacher:
            self._copy_teacher()
        self.class_query = self.encoder.has_class_token and self.teacher.encoder.has_class_token
        self.adapter = ConditionalAdapter(
            width, depth=self.encoder.depth, group=config.adapter_group, hidden=4 * config.decoder.width
        )
        self.decoder = TransformerDecoder(
            config.decoder, encoder_width=width, out_width=self.teacher.width, grid=grid, prefix=prefix
        )
        # Without blocks of its own; its exit gives queries and keys.
        self.relation_decoder = TransformerDecoder(
            DecoderConfig(width=config.decoder.width, depth=0, heads=config.decoder.heads),
            encoder_width=width,
            out_width=2 * self.teacher.width,
            grid=grid,
            prefix=prefix,
        )

    def _copy_teacher(self) -> None:
        try:
            self.encoder.network.load_state_dict(self.teacher.encoder.network.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"the encoder cannot start from the teacher {self.config.teacher}, which is another network"
            ) from error

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        return shared_views(batch, self.encoder, self.config, colour=None)

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        lesson = self.lesson(views.online)
        adapted_BLW = self._adapted(views, mask_BN)
        # Both decoders pass their shared blocks in one batch.
        entered = [decoder.place(adapted_BLW, mask_BN) for decoder in (self.decoder, self.relation_decoder)]
        features_BTD, relations_BTD = self.decoder.blocks(torch.cat(entered)).chunk(2)
        features_BND = self.decoder.norm(features_BTD)[:, self.encoder.prefix :]
        predicted_BhQN = self._relations(self.relation_decoder.norm(relations_BTD), lesson.salient_BK)
        return {
            "feature": self._feature_loss(features_BND, lesson, mask_BN, views.hidden),
            "relation": self.config.relation_weight * self._relation_loss(predicted_BhQN, lesson),
        }

    @torch.no_grad()
    def lesson(self, images_BCHW: Float[Tensor, "B C H W"]) -> Lesson:
        """What the teacher says of the online view's whole images."""
        encoder, config = self.teacher.encoder, self.config
        plain_BCHW = denormalise(images_BCHW, config.mean, config.std)
        features_BNW, attention_BhLL = self.teacher.look(plain_BCHW, config.feature_blocks)
        salient_BK = salient_patches(
            attention_BhLL, prefix=encoder.prefix, has_class_token=encoder.has_class_token, count=config.salient
        )
        keys_BhLN = attention_BhLL[..., encoder.prefix :]
        index = self._queries(salient_BK, encoder)[:, None, :, None]
        index = index.expand(-1, keys_BhLN.shape[1], -1, keys_BhLN.shape[3])
        return Lesson(features_BNW, salient_BK, keys_BhLN.gather(2, index))

    def _queries(self, salient_BK: Tensor, encoder: Encoder) -> Tensor:
        """Where the queries [B, Q] stand among an encoder's tokens; the class token, if both have one, comes first."""
        patches_BK = salient_BK + encoder.prefix
        return F.pad(patches_BK, (1, 0)) if self.class_query else patches_BK

    def _adapted(self, views: Views, mask_BN: Tensor) -> Tensor:
        """All blocks' outputs of the visible patches, the last one after the final norm, through the adapter."""
        outputs = self.encoder.block_outputs(
            views.online, tuple(range(self.encoder.depth)), drop_BN=mask_BN, hidden=views.hidden
        )
        return self.adapter((*outputs[:-1], self.encoder.norm(outputs[-1])))

    def _feature_loss(self, decoded_BND: Tensor, lesson: Lesson, mask_BN: Tensor, hidden: int | None) -> Tensor:
        # Each feature over the patches of its image, not each patch over its features.
        target_BNW = normalise_patches(lesson.features_BNW.transpose(1, 2)).transpose(1, 2)
        return mean_squared_error(
            self.decoder.predict(take_hidden(decoded_BND, mask_BN, hidden=hidden)),
            take_hidden(target_BNW, mask_BN, hidden=hidden),
        )

    def _relations(self, tokens_BTD: Tensor, salient_BK: Tensor) -> Tensor:
        """Predicted attention [B, h, Q, N] before its softmax, from the queries that the teacher has chosen."""
        prefix = self.encoder.prefix
        query_weight, key_weight = self.relation_decoder.head.weight.chunk(2)
        query_bias, key_bias = self.relation_decoder.head.bias.chunk(2)
        index = self._queries(salient_BK, self.encoder)[..., None].expand(-1, -1, tokens_BTD.shape[-1])
        chosen_BQD = tokens_BTD.gather(1, index)
        query_BQW = F.linear(chosen_BQD, query_weight, query_bias)
        key_BNW = F.linear(tokens_BTD[:, prefix:], key_weight, key_bias)
        query, key = (part.unflatten(2, (self.teacher.heads, -1)).transpose(1, 2) for part in (query_BQW, key_BNW))
        return query @ key.transpose(2, 3) * self.teacher.width**-0.5

    def _relation_loss(self, predicted_BhQN: Tensor, lesson: Lesson) -> Tensor:
        full = torch.promote_types(lesson.relations_BhQN.dtype, torch.float32)
        target_BhQN = (lesson.relations_BhQN.to(full) / self.config.relation_temperature).softmax(dim=-1)
        return F.cross_entropy(predicted_BhQN.flatten(0, 2), target_BhQN.flatten(0, 2))

    def update_target(self, progress: float) -> None:
        """The teacher stays as it is."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        return Inspection()
