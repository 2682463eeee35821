"""Heads that compare a feature with learnt prototypes: those of DINO and iBOT, and MSN's.

Shape legend: D input width, E width of the features that meet the prototypes, K prototypes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.models.heads import MLPHead, MLPHeadConfig


@dataclass(frozen=True, kw_only=True)
class PrototypeHeadConfig:
    """An MLP to a narrow unit vector, and a linear layer of prototypes with normalised directions (DINO)."""

    hidden: Annotated[int, Doc("Width of the MLP's hidden layers. [DINO]")] = 2048
    bottleneck: Annotated[int, Doc("Width of the MLP's output, which is normalised to length 1. [DINO]")] = 256
    layers: Annotated[int, Doc("Linear layers of the MLP. [DINO]")] = 3
    out: Annotated[int, Doc("Number of prototypes. [DINO: 65536; iBOT: 8192]")] = 65536
    norm: Annotated[Literal["none", "batch", "layer"], Doc("Norm after each hidden layer. [DINO: none for ViTs]")] = (
        "none"
    )
    activation: Annotated[Literal["gelu", "relu"], Doc("Activation after each hidden layer. [DINO]")] = "gelu"
    fixed_length: Annotated[
        bool, Doc("Whether prototypes keep length 1. [code: norm_last_layer; the recipes for ViT-S switch it off]")
    ] = False

    def __post_init__(self) -> None:
        for name, value in (("bottleneck", self.bottleneck), ("out", self.out)):
            if value < 1:
                raise ValueError(f"prototype head {name} must be at least 1, got {value}")


class Prototypes(nn.Module):
    """Logits of unit features by a linear layer without bias whose rows have a direction and a length of their own."""

    def __init__(self, width: int, count: int, *, fixed_length: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=not fixed_length)
        self.weight_v = nn.Parameter(torch.empty(count, width))
        bound = 1 / math.sqrt(width)  # torch's own start of a linear layer, as the authors leave it
        nn.init.uniform_(self.weight_v, -bound, bound)

    def forward(self, features: Float[Tensor, "*lead E"]) -> Float[Tensor, "*lead K"]:
        """Length times cosine, for features of length 1."""
        return F.linear(features, self.weight_g * F.normalize(self.weight_v, dim=-1))


class PrototypeHead(nn.Module):
    """DINO's head: MLP, L2 normalisation, prototypes."""

    def __init__(self, width: int, config: PrototypeHeadConfig) -> None:
        super().__init__()
        self.mlp = MLPHead(
            width,
            MLPHeadConfig(
                hidden=config.hidden,
                out=config.bottleneck,
                layers=config.layers,
                norm=config.norm,
                activation=config.activation,
                hidden_bias=True,
                out_bias=True,
                synchronised=True,  # DINO's authors convert batch norm wherever there is any
            ),
        )
        for layer in self.mlp.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = Prototypes(config.bottleneck, config.out, fixed_length=config.fixed_length)

    def features(self, tokens: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead E"]:
        """What the prototypes are compared with: vectors of length 1."""
        return F.normalize(self.mlp(tokens), dim=-1)

    def forward(self, tokens: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead K"]:
        """Logits of the prototypes; batch norm, where there is one, sees all leading positions as one batch."""
        return self.last(self.features(tokens))


class CosinePrototypes(nn.Module):
    """MSN's prototypes: learnt vectors with which features are compared by their cosine alone."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"there must be at least 1 prototype, got {count}")
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(count, width).uniform_(-bound, bound))

    def forward(self, features: Float[Tensor, "*lead E"]) -> Float[Tensor, "*lead K"]:
        """Cosines between -1 and 1, in float32 at least: temperatures of .025 would blow half precision up."""
        with torch.autocast(features.device.type, enabled=False):
            precise = features.to(torch.promote_types(features.dtype, torch.float32))
            return F.linear(F.normalize(precise, dim=-1), F.normalize(self.weight, dim=-1))
