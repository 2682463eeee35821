"""Multi-layer heads on tokens or on pooled features.

Shape legend: D input width, E output width; leading dimensions are flattened before batch norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Doc


@dataclass(frozen=True, kw_only=True)
class MLPHeadConfig:
    """`layers` linear layers with batch norm and ReLU between them."""

    hidden: Annotated[int, Doc("Width of the hidden layers.")] = 4096
    out: Annotated[int, Doc("Width of the output.")] = 256
    layers: Annotated[int, Doc("Number of linear layers.")] = 2
    hidden_bias: Annotated[bool, Doc("Whether hidden linear layers have a bias (batch norm cancels it).")] = False
    last_norm: Annotated[bool, Doc("Whether a batch norm without affine parameters ends the head.")] = False
    norm_eps: Annotated[float, Doc("Epsilon of the batch norms.")] = 1e-5
    synchronised: Annotated[
        bool, Doc("Whether batch statistics are taken over all ranks (SyncBN) or over each rank alone.")
    ] = False

    def __post_init__(self) -> None:
        for name, value in (("hidden", self.hidden), ("out", self.out), ("layers", self.layers)):
            if value < 1:
                raise ValueError(f"head {name} must be at least 1, got {value}")


class MLPHead(nn.Module):
    """Linear, batch norm, ReLU, ..., linear; in train mode over all leading positions together."""

    def __init__(self, width: int, config: MLPHeadConfig) -> None:
        super().__init__()
        norm = nn.SyncBatchNorm if config.synchronised else nn.BatchNorm1d
        layers: list[nn.Module] = []
        for _ in range(config.layers - 1):
            layers += [
                nn.Linear(width, config.hidden, bias=config.hidden_bias),
                norm(config.hidden, eps=config.norm_eps),
                nn.ReLU(inplace=True),
            ]
            width = config.hidden
        layers.append(nn.Linear(width, config.out, bias=False))
        if config.last_norm:
            layers.append(norm(config.out, eps=config.norm_eps, affine=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead E"]:
        """Map features of any leading shape; batch norm sees all leading positions as one batch."""
        flat = self.layers(features.flatten(0, -2))
        return flat.unflatten(0, features.shape[:-1])
