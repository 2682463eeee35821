"""Features of a pre-trained encoder as a step of a scikit-learn pipeline.

model = make_pipeline(UnmaskFeatures("runs/photos"), LogisticRegression())
model.fit(paths, labels)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from unmask.data.pixel_range import in_range
from unmask.embedding.images import GivenSource
from unmask.embedding.recipe import Extractor
from unmask.evaluation.features import check_finite, extract
from unmask.models.pretrained import Pooling, open_encoder
from unmask.training.trainer import choose_device


class UnmaskFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Frozen features [N, D] of images: paths, Pillow images, or arrays [H, W, C] of numbers.

    `encoder`: a run folder, an encoder.safetensors, or timm:NAME, whose weights timm downloads at `fit`. `output`: the
    mean of the patches, or the class token. `block`: of a ViT's block, 0 the first; None: the last. `image_size`:
    height and width in pixels, or one number for both; None: the encoder's own. `workers`: processes that decode; 0:
    none but this one. `fit` learns nothing: it opens the encoder. ValueError for what cannot be read: no row is left
    out.
    """

    def __init__(
        self,
        encoder: str = "timm:vit_small_patch16_224",
        *,
        output: Pooling = "mean",
        block: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 64,
        workers: int = 0,
        device: str = "auto",
    ) -> None:
        self.encoder = encoder
        self.output = output
        self.block = block
        self.image_size = image_size
        self.batch_size = batch_size
        self.workers = workers
        self.device = device

    def fit(self, X: Iterable[Any], y: Any = None) -> UnmaskFeatures:
        """Open the encoder. The images are not looked at."""
        if self.output not in ("mean", "class"):
            raise ValueError(f"output must be mean or class, not {self.output!r}")
        if self.batch_size < 1 or self.workers < 0:
            raise ValueError("batch_size must be at least 1, and workers at least 0")
        size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        encoder = open_encoder(str(self.encoder)).to(choose_device(self.device))
        self.extractor_ = Extractor(encoder, output=self.output, block=self.block, image_size=size)
        self._n_features_out = self.extractor_.shape[0]
        return self

    def transform(self, X: Iterable[Any]) -> NDArray[np.float32]:
        """Features, a row an image in the order given, float32 [N, D]."""
        check_is_fitted(self)
        if isinstance(X, str):
            raise ValueError(f"give a list of images, not one path: [{X!r}]")
        source = in_range(GivenSource("images", X), self.extractor_.encoder.pixel_range)
        height, width = self.extractor_.recipe.image_size
        found = extract(
            self.extractor_,
            source,
            height=height,
            width=width,
            channels=self.extractor_.channels,
            batch_size=self.batch_size,
            workers=self.workers,
        )
        if len(found.x_ND) != len(source):
            missing = sorted(set(range(len(source))) - set(found.indices_N.tolist()))
            raise ValueError(
                f"{len(missing)} of {len(source)} images cannot be read, for example {source.path(missing[0])}"
            )
        check_finite(found.x_ND)
        return found.x_ND.numpy()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags
