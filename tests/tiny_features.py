"""Files of features so small that a test can afford many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.data.sources import Source, open_source
from unmask.embedding.embed import EmbedConfig, Embedding
from unmask.embedding.files import write_features
from unmask.embedding.header import Header, Plan
from unmask.embedding.recipe import Extractor, Recipe
from unmask.embedding.rows import Block, Row
from unmask.models.pretrained import open_encoder

SMALL = EmbedConfig(batch_size=4, part_size=8)


def opened(encoder: Path, **recipe: Any) -> Extractor:
    """An encoder on the CPU, set to a kind of features."""
    return Extractor(open_encoder(str(encoder)).to(torch.device("cpu")), **recipe)


def embedding(encoder: Path, data: Path | Source, out: Path, config: EmbedConfig = SMALL, **recipe: Any) -> Embedding:
    """The features of some images on their way into a file."""
    source = data if isinstance(data, Source) else open_source(data)
    return Embedding(
        opened(encoder, **recipe), source, out, config, encoder=str(encoder), data=source.name, split="all"
    )


def embedded(encoder: Path, data: Path | Source, out: Path, config: EmbedConfig = SMALL, **recipe: Any) -> Header:
    """The header of the file, once it is written."""
    return embedding(encoder, data, out, config, **recipe).write(workers=0, report=lambda seen, before: None)


def feature_file(path: Path, features: NDArray[np.float32], *, each: int = 4, **recipe: Any) -> Path:
    """A file with these features [N, D], so many in each block, of images that are not there."""
    usual: dict[str, Any] = {"checksum": "a", "output": "mean", "block": 1, "image_size": (8, 8)}
    plan = Plan(
        recipe=Recipe(**usual | recipe),
        data="nowhere",
        split="all",
        names="b",
        precision="fp32",
        batch_size=each,
        part_size=each,
    )
    header = Header(
        plan=plan,
        encoder="gone",
        method=None,
        channels=3,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        shape=features.shape[1:],
        classes=None,
        images=len(features),
        bad_files=0,
        version="0",
    )

    def blocks() -> Any:
        for start in range(0, len(features), each):
            part = features[start : start + each]
            yield Block(part, [Row(index=start + k, path=f"{start + k}.png", label=None) for k in range(len(part))])

    write_features(path, header, blocks)
    return path
