"""Initial values that the authors of MAE, CMAE and BEiT give to their networks."""

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


def small_linears_(module: nn.Module) -> None:
    """Normal weights of deviation .02, cut at one deviation, and zero biases for every linear layer of `module`: the
    start of BEiT's authors, and of all who build on their code."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.02, b=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def normal_weights_(module: nn.Module) -> None:
    """BERT's start: normal weights of deviation .02 for linear layers and tables, zero biases; norms 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
        if isinstance(layer, nn.Linear | nn.LayerNorm) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
