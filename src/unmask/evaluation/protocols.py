"""Evaluations of an encoder on a data source: what `unmask evaluate` and the training loop call."""

from __future__ import annotations

from functools import partial

from unmask.data.pixel_range import in_range
from unmask.data.sources import Source, labelled
from unmask.evaluation.features import FeatureExtractor, Features, extract
from unmask.models.encoder import Encoder
from unmask.models.pretrained import Pooling, PretrainedEncoder

EVALUATION_BATCH = 128


def features_at_size_of(encoder: Encoder, extractor: FeatureExtractor, source: Source, *, workers: int) -> Features:
    """Features by `extractor` of all images of `source`, resized to the image size and channels of `encoder`."""
    height, width = encoder.image_size
    return extract(
        extractor,
        source,
        height=height,
        width=width,
        channels=encoder.config.channels,
        batch_size=EVALUATION_BATCH,
        workers=workers,
    )


def encoder_features(
    encoder: PretrainedEncoder, source: Source, *, workers: int, pooling: Pooling = "mean"
) -> Features:
    """Frozen features of all images of `source`, resized to the encoder's own image size."""
    extractor = partial(encoder.features, pooling=pooling)
    return features_at_size_of(encoder.encoder, extractor, in_range(source, encoder.pixel_range), workers=workers)


def labelled_or_none(data: str) -> tuple[Source, Source] | None:
    """The labelled halves of `data`, or None where it has no labels that an evaluation could use."""
    try:
        return labelled(data)
    except ValueError:
        return None
