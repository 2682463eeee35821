"""Vector-quantised knowledge distillation: the tokenizer of BEiT v2 (Peng et al. 2022, arXiv 2208.06366).

A ViT's patch tokens are mapped to a narrow space and replaced by their nearest codes there; a shallow transformer
decodes the codes to the features of a frozen teacher (CLIP, DINO, or any encoder of ours). The loss is one minus the
cosine of decoded and teacher's features plus the commitment of the features to their codes.

Where this differs from the authors' code: they divide the output weights of block l by sqrt(2 l) at the start, here the
ViT starts as timm's; they resize images so that the teacher's grid fits, here the teacher sees its own size and its
grid of features is resized where it differs; codes that nothing hits start anew (`codebook.restart_after` 0: never).

Shape legend: B images, C channels, H x W pixels, N = B x n tokens of the batch, n tokens of an image, V codes, D width
of a code, W width of the transformers, T width of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder
from unmask.models.tokenizers.base import Lesson, Losses, TokenizerConfig, TrainableTokenizer
from unmask.models.tokenizers.codebook import Codebook, CodebookConfig
from unmask.models.tokenizers.conv import map_of
from unmask.models.tokenizers.teacher import teacher_patches
from unmask.optimisation import ParameterRule


@dataclass(frozen=True, kw_only=True)
class VQKDConfig(TokenizerConfig):
    """Knobs of VQ-KD; defaults are the authors'."""

    encoder: Annotated[EncoderConfig, Doc("The transformer before the codes. [ViT-B/16]")] = EncoderConfig(
        name="vit_base_patch16_224"
    )
    decoder_depth: Annotated[int, Doc("Blocks of the transformer after the codes, as wide as the first. [1 or 3]")] = 3
    codebook: Annotated[CodebookConfig, Doc("The codes.")] = CodebookConfig()
    teacher_width: Annotated[int, Doc("Width of the teacher's features. [512 for CLIP ViT-B/16]")] = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder.channels != self.channels:
            raise ValueError(
                f"the tokenizer's encoder takes {self.encoder.channels} channels, its images have {self.channels}"
            )
        if self.encoder.drop_path:
            raise ValueError("a tokenizer must give the same tokens every time, so its encoder takes no drop path")
        if self.decoder_depth < 1 or self.teacher_width < 1:
            raise ValueError("decoder_depth and teacher_width must be at least 1")


class VQKD(TrainableTokenizer):
    """Codes from which a shallow transformer can tell a teacher's features (Peng et al. 2022)."""

    kind: ClassVar[str] = "vqkd"

    def __init__(self, config: VQKDConfig) -> None:
        super().__init__()
        self.config: VQKDConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        self.codebook = Codebook(config.codebook, config.vocabulary)
        rows, columns = self.encoder.grid
        self.decoder = build_encoder(
            replace(
                config.encoder,
                image_height=rows,
                image_width=columns,
                patch_size=1,
                channels=config.codebook.width,
                depth=config.decoder_depth,
            ),
            mask_token=False,
        )
        width = self.encoder.width
        self.encode_task = _task_layer(width, config.codebook.width)
        self.decode_task = _task_layer(width, config.teacher_width)
        height, width = self.encoder.patch
        if height != width:
            raise ValueError(f"a tokenizer needs square patches, not {height}x{width}")

    @property
    def stride(self) -> int:
        return self.encoder.patch[0]

    def scores(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n V"]:
        return self.codebook.logits(self._features(images_BCHW))

    def _features(self, images_BCHW: Tensor) -> Tensor:
        return self.encode_task(self.encoder.patches(self.encoder(2 * images_BCHW - 1)))

    def losses(self, images_BCHW: Float[Tensor, "B C H W"], lesson: Lesson) -> Losses:
        if lesson.teacher is None:
            raise ValueError("VQ-KD learns from a teacher: give it one")
        found = self.codebook.learn(self._features(images_BCHW).flatten(0, 1), lesson.generator)
        agreement = self._agreement(found.codes_ND, images_BCHW, lesson.teacher)
        return {"distillation": 1 - agreement, "commitment": found.commitment}

    def agreement(self, images_BCHW: Float[Tensor, "B C H W"], teacher: PretrainedEncoder) -> Float[Tensor, ""]:
        """Mean cosine of the teacher's features and those decoded from the tokens; call it without gradients."""
        found = self.codebook.quantise(self._features(images_BCHW).flatten(0, 1))
        return self._agreement(found.codes_ND, images_BCHW, teacher)

    def _agreement(self, codes_ND: Tensor, images_BCHW: Tensor, teacher: PretrainedEncoder) -> Tensor:
        if teacher.encoder.width != self.config.teacher_width:
            raise ValueError(
                f"the teacher {teacher.origin} has features of width {teacher.encoder.width}, "
                f"not {self.config.teacher_width}"
            )
        batch, _, height, width = images_BCHW.shape
        grid = (height // self.stride, width // self.stride)
        target_BnT = teacher_patches(teacher, images_BCHW, grid)
        codes_BDhw = map_of(codes_ND.unflatten(0, (batch, -1)), grid)
        decoded_BnT = self.decode_task(self.decoder.patches(self.decoder(codes_BDhw)))
        return F.cosine_similarity(decoded_BnT.float(), target_BnT, dim=-1).mean()

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        position = name.endswith(("cls_token", "pos_embed"))
        return ParameterRule(decay=parameter.ndim > 1 and not position)


def _task_layer(width: int, outputs: int) -> nn.Sequential:
    hidden, last = nn.Linear(width, width), nn.Linear(width, outputs)
    for layer in (hidden, last):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(hidden, nn.Tanh(), last)
