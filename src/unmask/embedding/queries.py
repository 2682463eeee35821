"""Features of images to search for, by the encoder that made a file of features."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.data.dataset import BadFile
from unmask.data.decode import DecodeError
from unmask.data.pixel_range import in_range
from unmask.data.source import Source
from unmask.embedding.neighbours import normalised
from unmask.embedding.recipe import Extractor, encoder_checksum
from unmask.embedding.rows import FeatureFile
from unmask.evaluation.features import check_finite, extract
from unmask.models.pretrained import open_encoder

_BATCH = 64


def query_extractor(file: FeatureFile, encoder: str | None, device: torch.device) -> Extractor:
    """The encoder of a file, set as it was: found where it was, or at `encoder`. ValueError for another one."""
    recipe = file.header.plan.recipe
    spec = file.header.encoder if encoder is None else encoder
    try:
        found = open_encoder(spec)
    except ValueError as error:
        if encoder is not None:
            raise
        raise ValueError(f"the encoder of {file.path} cannot be opened any more ({error}): give --encoder") from error
    if encoder_checksum(found) != recipe.checksum:
        hint = "it has changed since: give --encoder" if encoder is None else "features of two encoders do not compare"
        raise ValueError(f"{spec} is not the encoder that made {file.path}; {hint}")
    assert recipe.output != "dense"
    return Extractor(found.to(device), output=recipe.output, block=recipe.block, image_size=recipe.image_size)


def query_features(extractor: Extractor, queries: Source) -> NDArray[np.float32]:
    """Features of length 1, a row a query. ValueError for a query that cannot be read."""
    queries = in_range(queries, extractor.encoder.pixel_range)
    for index in range(len(queries)):
        try:
            queries.open(index).decode(min_size=(1, 1), channels=extractor.channels)
        except (OSError, DecodeError) as error:
            bad = BadFile.of(queries, index, error)
            raise ValueError(f"{bad.path} cannot be searched for: {bad.reason}") from error
    height, width = extractor.recipe.image_size
    found = extract(
        extractor, queries, height=height, width=width, channels=extractor.channels, batch_size=_BATCH, workers=0
    )
    check_finite(found.x_ND)
    return normalised(found.x_ND.numpy())
