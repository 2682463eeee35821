"""A copy of a pre-trained encoder as fine-tuning wants it, for every task."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import nn

from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.hybrid import HybridEncoder
from unmask.models.positions import resample_positions
from unmask.models.pretrained import PretrainedEncoder
from unmask.models.relative_tables import with_own_tables


@runtime_checkable
class EncoderTuning(Protocol):
    """What every task's configuration says about the encoder."""

    @property
    def own_tables(self) -> bool:
        """Whether a shared table of relative positions is copied into every block first."""
        ...

    @property
    def drop_path(self) -> float:
        """Stochastic depth of the last block."""
        ...

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        ...

    @property
    def image_height(self) -> int | None:
        """Height of the images, in pixels; None: as it was."""
        ...

    @property
    def image_width(self) -> int | None:
        """Width of the images, in pixels; None: as it was."""
        ...


def tuned_encoder(pretrained: PretrainedEncoder, config: EncoderTuning) -> Encoder:
    """A copy of the encoder with drop path, tables of its own, another image size, and positions that learn.

    Positions learn, also those that pre-training held fixed, and follow another image size by interpolation, as in
    MAE's code. ValueError for an image size that the patches do not divide, and for drop path where the network has
    none.
    """
    old = pretrained.encoder
    position = "learned" if old.config.position == "sincos" else old.config.position
    changed = replace(old.config, position=position, drop_path=config.drop_path, checkpointing=config.checkpointing)
    encoder = build_encoder(changed, mask_token=False)
    encoder.network.load_state_dict(old.network.state_dict())
    if config.own_tables and encoder.config.position == "relative":
        encoder = with_own_tables(encoder)
    height, width = old.image_size
    _resize(
        encoder,
        height if config.image_height is None else config.image_height,
        width if config.image_width is None else config.image_width,
    )
    for name, parameter in encoder.network.named_parameters():
        if name == "pos_embed":
            parameter.requires_grad_(True)
    return encoder


def _resize(encoder: Encoder, height: int, width: int) -> None:
    """Let the encoder take images of another size, with interpolated positions."""
    if (height, width) == encoder.image_size:
        return
    if not isinstance(encoder, HybridEncoder):
        encoder.set_image_size(height, width)
        return
    # Its own way computes fixed positions anew, beyond those that the blocks know.
    position_1ND, grid = encoder.hybrid.pos_embed.detach(), encoder.grid
    encoder.set_image_size(height, width)
    resized_1ND = resample_positions(position_1ND, grid, encoder.grid, prefix=0, way=encoder.config.position_resize)
    encoder.hybrid.pos_embed = nn.Parameter(resized_1ND)
