"""Vector-quantised autoencoder of pixels, judged by the eye of another network: the tokenizer of PeCo
(Dong et al., AAAI 2023, arXiv 2111.12710).

A convolutional encoder's features are replaced by their nearest codes and decoded to pixels. The loss is the squared
error of the pixels, the distance of both images' features in several layers of a self-supervised ViT (where the user
gives one), and the commitment of the features to their codes.

No code was released. What the paper leaves open is decided here: encoder and decoder are DALL-E's, in any size; the
codebook is one of unit vectors (see codebook.py), which stays in use more easily than the paper's free vectors.

Shape legend: B images, C channels, H x W pixels, N = B x n tokens of the batch, V codes, D width of a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import Doc

from unmask.models.tokenizers.base import Lesson, Losses, PaintingTokenizer, TokenizerConfig
from unmask.models.tokenizers.codebook import Codebook, CodebookConfig
from unmask.models.tokenizers.conv import ConvConfig, ConvDecoder, ConvEncoder, map_of, rows_of
from unmask.models.tokenizers.teacher import perceptual_distance
from unmask.optimisation import ParameterRule


@dataclass(frozen=True, kw_only=True)
class VQConfig(TokenizerConfig):
    """Knobs of the vector-quantised autoencoder."""

    conv: Annotated[ConvConfig, Doc("Size of encoder and decoder. [stride 16 in PeCo]")] = ConvConfig(stride=16)
    codebook: Annotated[CodebookConfig, Doc("The codes. [commitment 0.25 in VQ-VAE]")] = CodebookConfig(commitment=0.25)
    perceptual: Annotated[float, Doc("Weight of the teacher's distance, where there is a teacher. [1 in PeCo]")] = 1.0
    perceptual_layers: Annotated[int, Doc("Blocks of the teacher that are compared, evenly spaced. [4 in PeCo]")] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.perceptual < 0 or self.perceptual_layers < 1:
            raise ValueError("perceptual must be 0 or more, and perceptual_layers at least 1")


class VQ(PaintingTokenizer):
    """Nearest codes between a convolutional encoder and decoder, with a perceptual loss (Dong et al. 2021)."""

    kind: ClassVar[str] = "vq"

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config: VQConfig = config
        self.encoder = ConvEncoder(config.conv, channels=config.channels, outputs=config.codebook.width)
        self.codebook = Codebook(config.codebook, config.vocabulary)
        self.decoder = ConvDecoder(config.conv, inputs=config.codebook.width, outputs=config.channels)

    @property
    def stride(self) -> int:
        return self.config.conv.stride

    def scores(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n V"]:
        return self.codebook.logits(self._features(images_BCHW))

    def _features(self, images_BCHW: Tensor) -> Tensor:
        return rows_of(self.encoder(2 * images_BCHW - 1))

    def _decoded(self, codes_ND: Tensor, images_BCHW: Tensor) -> Tensor:
        """Values in about [-1, 1] of the size of the images."""
        batch, _, height, width = images_BCHW.shape
        grid = (height // self.stride, width // self.stride)
        return self.decoder(map_of(codes_ND.unflatten(0, (batch, -1)), grid)).float()

    def losses(self, images_BCHW: Float[Tensor, "B C H W"], lesson: Lesson) -> Losses:
        found = self.codebook.learn(self._features(images_BCHW).flatten(0, 1), lesson.generator)
        values_BCHW = self._decoded(found.codes_ND, images_BCHW)
        losses = {
            "reconstruction": F.mse_loss(values_BCHW, 2 * images_BCHW - 1),
            "commitment": found.commitment,
        }
        if lesson.teacher is not None:
            painted_BCHW = (values_BCHW + 1) / 2
            distance = perceptual_distance(lesson.teacher, images_BCHW, painted_BCHW, self.config.perceptual_layers)
            losses["perceptual"] = self.config.perceptual * distance
        return losses

    def decode(self, ids_Bn: Int64[Tensor, "B n"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        values_BCHW = self.decoder(map_of(self.codebook.codes_VD[ids_Bn], grid)).float()
        return ((values_BCHW + 1) / 2).clamp(0, 1)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=parameter.ndim > 1)
