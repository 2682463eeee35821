"""Images made of noise, for measurements that need none of anybody's."""

from __future__ import annotations

import torch

from unmask.data.batch import Batch
from unmask.methods.base import Method


def made_batch(method: Method, count: int) -> Batch:
    """Crops of noise such as `method` takes, with labels and captions."""
    generator = torch.Generator().manual_seed(0)
    crops, boxes = [], []
    for crop in method.crops:
        shape = (count, crop.count, method.config.encoder.channels, crop.height, crop.width)
        crops.append(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
        box_6 = torch.tensor([0, 0, crop.height, crop.width, crop.height, crop.width], dtype=torch.float32)
        boxes.append(box_6.expand(count, crop.count, 6).clone())
    return Batch(
        crops=tuple(crops),
        boxes=tuple(boxes),
        indices=torch.arange(count),
        seed=0,
        labels=torch.arange(count) % 2,
        texts=tuple(f"picture number {index}" for index in range(count)),
    )
