"""An encoder as a file of our own, as a finished run leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.interop.weights_out.compare import Difference, difference, tokens_of
from unmask.models.pretrained import PretrainedEncoder, encoder_file, read_encoder
from unmask.training.checkpoint import write_atomically


def write_encoder(
    pretrained: PretrainedEncoder, facts: dict[str, Any], images_BCHW: Tensor, path: Path
) -> list[Difference]:
    """Write the file with `facts` in its header, and compare what is read from it."""
    tensors, metadata = encoder_file(
        pretrained.encoder,
        mean=pretrained.mean,
        std=pretrained.std,
        facts=facts,
        pixel_range=pretrained.pixel_range,
    )
    write_atomically(path, tensors, metadata)
    again = read_encoder(path).to(torch.device("cpu"))
    return [difference("tokens", tokens_of(again, images_BCHW), tokens_of(pretrained, images_BCHW))]
