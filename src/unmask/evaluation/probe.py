"""A linear probe as a classifier of images: what robustness is measured of where an encoder was not fine-tuned.

Shape legend: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unmask.data.pixel_range import PixelRange
from unmask.data.sources import Source
from unmask.evaluation.features import check_finite
from unmask.evaluation.linear import Heads, LinearConfig, fit_linear
from unmask.evaluation.protocols import encoder_features
from unmask.models.pretrained import Pooling, PretrainedEncoder
from unmask.views import normalise, to_float


@dataclass(frozen=True, kw_only=True)
class ProbeClassifier:
    """A frozen encoder with a linear classifier of its features on top, the only one of `heads`."""

    pretrained: PretrainedEncoder
    pooling: Pooling
    heads: Heads
    lr: float
    """Peak learning rate that the classifier was trained with."""
    classes: tuple[str, ...]
    crop_ratio: float | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self.pretrained.encoder.image_size

    @property
    def pixel_range(self) -> PixelRange | None:
        """What becomes black and white of images with more than 8 bits."""
        return self.pretrained.pixel_range

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.pretrained.encoder.config.channels

    @torch.no_grad()
    def __call__(self, images_BCHW: UInt8[Tensor, "B C H W"], /) -> Float[Tensor, "B K"]:
        """Logits of uint8 images, computed where the encoder is, as float32 on the CPU."""
        return self._logits(to_float(images_BCHW.to(self._device)))

    @torch.no_grad()
    def noisy_logits(
        self, images_BCHW: UInt8[Tensor, "B C H W"], noise_BCHW: Float[Tensor, "B C H W"], /
    ) -> Float[Tensor, "B K"]:
        """Logits of images with noise, in units of pixel values in [0, 1], added before normalisation; not clipped."""
        return self._logits(to_float(images_BCHW.to(self._device)) + noise_BCHW.to(self._device))

    @property
    def _device(self) -> torch.device:
        return next(self.pretrained.encoder.parameters()).device

    def _logits(self, images_BCHW: Tensor) -> Tensor:
        encoder = self.pretrained.encoder
        tokens_BLD = encoder(normalise(images_BCHW, self.pretrained.mean, self.pretrained.std))
        return self.heads(encoder.pool(tokens_BLD, self.pooling).float())[:, 0].float().cpu()


def fit_probe(
    pretrained: PretrainedEncoder,
    train: Source,
    config: LinearConfig,
    seed: int,
    *,
    pooling: Pooling = "mean",
    workers: int,
) -> ProbeClassifier:
    """The quick linear probe of an encoder, fitted to the labelled images of `train` where the encoder is.

    Its rate is chosen inside `train` (see `fit_linear`). Its classes are those that `train` names, also one without a
    readable image. Raises ValueError for images without labels or names of classes, for fewer than two readable ones,
    and for features that are not finite.
    """
    if train.labels is None or train.classes is None:
        raise ValueError(f"the images of {train.name} have no labels; put each class in a folder of its own")
    features = encoder_features(pretrained, train, workers=workers, pooling=pooling)
    check_finite(features.x_ND)
    assert features.labels_N is not None
    device = next(pretrained.encoder.parameters()).device
    fit = fit_linear(features.x_ND, features.labels_N, len(train.classes), config, seed, device=device)
    return ProbeClassifier(pretrained=pretrained, pooling=pooling, heads=fit.heads, lr=fit.lr, classes=train.classes)
