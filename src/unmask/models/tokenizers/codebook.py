"""A codebook of unit vectors that follows the features it names: cosine k-means at the start, then moving averages.

The rule is BEiT v2's: features and codes are compared on the unit sphere (as in ViT-VQGAN, Yu et al. 2022); after every
step each code that was hit moves towards the normalised mean of its features, and is normalised again. Ours are: codes
that nothing has hit for some steps start anew at a feature of the batch (their authors restart none), and the spread of
the features around their codes is measured, which makes logits of distances.

Why logits are -d^2 / (2 s^2), d the distance to a code and s^2 the mean squared error of a coordinate: it is the log of
the posterior of a mixture of equal Gaussians at the codes with the spread that was measured. So softmax means the same
for every codebook, whatever its width and size; bare cosines in [-1, 1] would make thousands of codes almost equal.

Shape legend: N features, D their width, V codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import Doc

KMEANS_ROUNDS = 10
SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """How a codebook is built and moves."""

    width: Annotated[int, Doc("Width of a code. [32 in BEiT v2]")] = 32
    momentum: Annotated[float, Doc("Share of a code that stays at each step. [0.99 in BEiT v2]")] = 0.99
    restart_after: Annotated[
        int,
        Doc("Steps without a hit after which a code starts anew at a feature of the batch; 0: never. [0 in BEiT v2]"),
    ] = 30
    commitment: Annotated[
        float, Doc("Weight of the squared error between features and their codes, mean over values. [1 in BEiT v2]")
    ] = 1.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"codes need a width of at least 1, got {self.width}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"the codebook's momentum must lie in [0, 1), got {self.momentum}")
        if self.restart_after < 0 or self.commitment < 0:
            raise ValueError("restart_after and commitment must be 0 or more")


@dataclass(frozen=True)
class Quantised:
    """Features replaced by their codes (gradients pass straight through), the codes' numbers, the commitment loss."""

    codes_ND: Float[Tensor, "N D"]
    ids_N: Int64[Tensor, " N"]
    commitment: Float[Tensor, ""]


class Codebook(nn.Module):
    """V unit vectors that follow the features they name."""

    codes_VD: Tensor
    idle_V: Tensor
    spread: Tensor
    started: Tensor

    def __init__(self, config: CodebookConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codes_VD", torch.zeros(vocabulary, config.width))
        # Steps since the last hit of each code.
        self.register_buffer("idle_V", torch.zeros(vocabulary, dtype=torch.int64))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def logits(self, features: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead V"]:
        """Log-posterior of each code, up to a constant, for features that need not be normalised."""
        cosine = F.normalize(features.to(self.codes_VD.dtype), dim=-1) @ self.codes_VD.T
        # Unit vectors: d^2 = 2 - 2 cos.
        return (cosine - 1) / self.spread

    def quantise(self, features_ND: Float[Tensor, "N D"]) -> Quantised:
        """The nearest codes. Nothing moves."""
        unit_ND = F.normalize(features_ND.float(), dim=-1)
        with torch.no_grad():
            ids_N = (unit_ND @ self.codes_VD.T).argmax(dim=-1)
            codes_ND = self.codes_VD[ids_N]
        loss = self.config.commitment * F.mse_loss(unit_ND, codes_ND)
        return Quantised(unit_ND + (codes_ND - unit_ND).detach(), ids_N, loss)

    def learn(self, features_ND: Float[Tensor, "N D"], generator: torch.Generator) -> Quantised:
        """A training step: place the codes if this is the first, find the nearest ones, then let them follow."""
        # Sums and distances in half precision would confuse neighbours.
        with torch.autocast(features_ND.device.type, enabled=False):
            self.start(features_ND, generator)
            found = self.quantise(features_ND)
            self.follow(features_ND, found.ids_N, generator)
        return found

    @torch.no_grad()
    def start(self, features_ND: Float[Tensor, "N D"], generator: torch.Generator) -> None:
        """Place the codes by cosine k-means among the first batch's features, once."""
        if bool(self.started):
            return
        unit_ND = F.normalize(features_ND.float(), dim=-1)
        self.codes_VD.copy_(_spherical_kmeans(unit_ND, len(self.codes_VD), generator))
        nearest_N = (unit_ND @ self.codes_VD.T).amax(dim=-1)
        self.spread.copy_(_spread(nearest_N, self.config.width))
        self.started.fill_(True)

    @torch.no_grad()
    def follow(self, features_ND: Float[Tensor, "N D"], ids_N: Int64[Tensor, " N"], generator: torch.Generator) -> None:
        """Move every code that was hit towards its features, restart those idle for too long, measure the spread."""
        unit_ND = F.normalize(features_ND.float(), dim=-1)
        keep = self.config.momentum
        self.spread.lerp_(_spread((unit_ND * self.codes_VD[ids_N]).sum(dim=-1), self.config.width), 1 - keep)
        sums_VD, hits_V = _sums(unit_ND, ids_N, len(self.codes_VD))
        moved_VD = F.normalize(self.codes_VD.lerp(F.normalize(sums_VD, dim=-1), 1 - keep), dim=-1)
        self.codes_VD.copy_(torch.where(hits_V[:, None] > 0, moved_VD, self.codes_VD))
        self.idle_V.copy_(torch.where(hits_V > 0, 0, self.idle_V + 1))
        if self.config.restart_after:
            dead_V = self.idle_V >= self.config.restart_after
            chosen_V = torch.randint(len(unit_ND), (len(dead_V),), generator=generator).to(unit_ND.device)
            self.codes_VD.copy_(torch.where(dead_V[:, None], unit_ND[chosen_V], self.codes_VD))
            self.idle_V.masked_fill_(dead_V, 0)


def _spread(cosine_N: Tensor, width: int) -> Tensor:
    """Mean squared error of a coordinate, from the cosines between features and their codes."""
    return (2 * (1 - cosine_N).mean() / width).clamp_min(SMALLEST_SPREAD)


def _sums(unit_ND: Tensor, ids_N: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """For each code the sum and the number of the features that it names."""
    # On a GPU adding by index has no fixed order, and a resumed run must end bit for bit: a product with the table of
    # hits has one.
    hits_NV = unit_ND.new_zeros(len(ids_N), codes).scatter_(1, ids_N[:, None], 1.0)
    return hits_NV.T @ unit_ND, hits_NV.sum(dim=0)


def _spherical_kmeans(unit_ND: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """Cosine k-means from random features; with fewer features than codes some codes begin alike."""
    count = len(unit_ND)
    if count >= codes:
        chosen_V = torch.randperm(count, generator=generator)[:codes]
    else:
        chosen_V = torch.randint(count, (codes,), generator=generator)
    means_VD = unit_ND[chosen_V.to(unit_ND.device)]
    for _ in range(KMEANS_ROUNDS):
        ids_N = (unit_ND @ means_VD.T).argmax(dim=-1)
        sums_VD, hits_V = _sums(unit_ND, ids_N, codes)
        means_VD = torch.where(hits_V[:, None] > 0, F.normalize(sums_VD, dim=-1), means_VD)
    return means_VD
