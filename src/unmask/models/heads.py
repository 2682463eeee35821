"""Multi-layer heads on tokens or on pooled features.

Shape legend: D input width, E output width; leading dimensions are flattened before a norm sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.models.batch_norm import RankBatchNorm


@dataclass(frozen=True, kw_only=True)
class MLPHeadConfig:
    """`layers` linear layers with a norm and an activation between them."""

    hidden: Annotated[int, Doc("Width of the hidden layers.")] = 4096
    out: Annotated[int, Doc("Width of the output.")] = 256
    layers: Annotated[int, Doc("Number of linear layers.")] = 2
    norm: Annotated[Literal["batch", "layer", "none"], Doc("Norm after each hidden linear layer.")] = "batch"
    activation: Annotated[Literal["relu", "gelu"], Doc("Activation after each hidden norm.")] = "relu"
    hidden_bias: Annotated[bool, Doc("Whether hidden linear layers have a bias (batch norm cancels it).")] = False
    out_bias: Annotated[bool, Doc("Whether the last linear layer has a bias.")] = False
    last_norm: Annotated[bool, Doc("Whether a batch norm ends the head.")] = False
    last_affine: Annotated[bool, Doc("Whether that last batch norm has a weight and a bias.")] = False
    norm_eps: Annotated[float, Doc("Epsilon of the norms.")] = 1e-5
    synchronised: Annotated[
        bool, Doc("Whether batch statistics are taken over all ranks (as SyncBN does) or over each rank alone.")
    ] = False

    def __post_init__(self) -> None:
        for name, value in (("hidden", self.hidden), ("out", self.out), ("layers", self.layers)):
            if value < 1:
                raise ValueError(f"head {name} must be at least 1, got {value}")


class MLPHead(nn.Module):
    """Linear, norm, activation, ..., linear; a batch norm in train mode sees all leading positions together."""

    def __init__(self, width: int, config: MLPHeadConfig) -> None:
        super().__init__()
        batch_norm = RankBatchNorm if config.synchronised else nn.BatchNorm1d
        layers: list[nn.Module] = []
        for _ in range(config.layers - 1):
            layers.append(nn.Linear(width, config.hidden, bias=config.hidden_bias))
            if config.norm == "batch":
                layers.append(batch_norm(config.hidden, eps=config.norm_eps))
            elif config.norm == "layer":
                layers.append(nn.LayerNorm(config.hidden, eps=config.norm_eps))
            layers.append(nn.ReLU(inplace=True) if config.activation == "relu" else nn.GELU())
            width = config.hidden
        layers.append(nn.Linear(width, config.out, bias=config.out_bias))
        if config.last_norm:
            layers.append(batch_norm(config.out, eps=config.norm_eps, affine=config.last_affine))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead E"]:
        """Map features of any leading shape; batch norm sees all leading positions as one batch."""
        flat = self.layers(features.flatten(0, -2))
        return flat.unflatten(0, features.shape[:-1])
