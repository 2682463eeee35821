"""Initial values that MAE's and CMAE's authors give to their networks."""

from __future__ import annotations

from torch import nn


def xavier_linears_(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer of `module`; norms at one and zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def xavier_patches_(projection: nn.Conv2d) -> None:
    """Xavier-uniform for a patch embedding, seen as the linear layer that it is; the bias is left as torch makes it."""
    nn.init.xavier_uniform_(projection.weight.view(projection.out_channels, -1))
