"""Layer-wise learning-rate decay, and freezing by layers: the deeper a layer, the faster it learns (BEiT).

Layers are counted as timm counts them: 0 is what comes before the first block, block b (from 0) is layer b + 1, a final
norm belongs to the last block. What stands behind the encoder (head, new norm, decoder) learns at the full rate.
"""

from __future__ import annotations

from typing import Any, cast

from timm.models import group_parameters
from torch import Tensor, nn

from unmask.models.encoder import Encoder
from unmask.optimisation import ParameterRule
from unmask.trainee import one_dimensional

UNDECAYED = ("cls_token", "pos_embed", "reg_token")
"""Parameters that take no weight decay though they are no vectors. [BEiT's and MAE's fine-tuning code]"""


def layers(encoder: Encoder) -> dict[nn.Parameter, int]:
    """The layer of every parameter of the encoder's network: 0 the stem, up to the number of blocks."""
    # Every network we build has timm's description of its layers.
    network = cast(Any, encoder.network)
    layer_of = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    return {parameter: layer_of[name] for name, parameter in encoder.network.named_parameters()}


def block_count(encoder: Encoder) -> int:
    """Number of blocks as `layers` counts them: of all stages together in a convolutional network."""
    return max(layers(encoder).values())


class LayerDecay:
    """The rule of every parameter of a model around `encoder`: rate x decay^(blocks + 1 - layer), no weight decay for
    vectors, positions and class tokens (BEiT's optim_factory, MAE's lr_decay)."""

    def __init__(self, encoder: Encoder, decay: float) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"layer decay must lie in (0, 1], got {decay}")
        layer_of = layers(encoder)
        top = max(layer_of.values()) + 1
        self._scales = {parameter: decay ** (top - layer) for parameter, layer in layer_of.items()}

    def __call__(self, name: str, parameter: Tensor) -> ParameterRule:
        """The rule of the parameter called `name` in the whole model."""
        decayed = not one_dimensional(name, parameter) and name.rpartition(".")[2] not in UNDECAYED
        scale = self._scales.get(cast(nn.Parameter, parameter), 1.0)
        return ParameterRule(decay=decayed, lr_scale=scale)


def freeze_below(encoder: Encoder, blocks: int | None) -> None:
    """Let only the last `blocks` blocks of `encoder` learn; 0 freezes it whole, None leaves all as it is.

    With as many blocks as there are (or more) only the stem stays frozen. A final norm learns with the last block.
    ValueError for a negative number.
    """
    if blocks is None:
        return
    if blocks < 0:
        raise ValueError(f"the number of blocks to tune must be 0 or more, got {blocks}")
    layer_of = layers(encoder)
    first = max(layer_of.values()) + 1 - blocks
    for parameter in encoder.parameters():
        if layer_of.get(parameter, 0) < max(first, 1):
            parameter.requires_grad_(False)
