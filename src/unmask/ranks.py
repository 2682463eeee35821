"""What the processes of one training ("ranks") tell each other: sums, means and features of the whole batch.

Everything here is the plain thing outside a process group, and costs nothing there. All ranks must call it at the same
place. Gradients of ranks are averaged (as DistributedDataParallel does), so a loss is this rank's mean, and what a rank
adds to a value of all ranks is its own share.

Shape legend: B samples of this rank, G samples of all ranks together, D feature width.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def world_size() -> int:
    """Number of ranks; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor without gradient over all ranks."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor without gradient over all ranks."""
    return sum_over_ranks(value) / world_size() if world_size() > 1 else value


def shared_sum(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, through which gradients of all ranks' losses flow back to every rank."""
    if world_size() == 1:
        return value
    total: Tensor = _SharedSum.apply(value)
    return total


class _SharedSum(torch.autograd.Function):
    # torch.distributed.nn.functional.all_reduce does the same, and warns that it is to be replaced.
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return sum_over_ranks(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_ranks(gradients[0])


def gather_without_gradient(features_BD: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "G D"], int]:
    """Features of all ranks in rank order, and where this rank's begin.

    No gradient flows to any of them (the authors' rule in CMAE and MoCo v3: keys carry none). All ranks must hold
    equally many.
    """
    if world_size() == 1:
        return features_BD.detach(), 0
    gathered = [torch.empty_like(features_BD) for _ in range(world_size())]
    dist.all_gather(gathered, features_BD.detach().contiguous())
    return torch.cat(gathered), rank() * features_BD.shape[0]


def gather_with_gradient(features_BD: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "G D"], int]:
    """`gather_without_gradient`, but gradients of all ranks' losses flow back to the rank that a feature comes from."""
    if world_size() == 1:
        return features_BD, 0
    own = features_BD.shape[0]
    places = features_BD.new_zeros(world_size() * own, *features_BD.shape[1:])
    offset = rank() * own
    # A sum of what is zero everywhere but at the rank's own places: its gradient is the sum that is wanted.
    return shared_sum(torch.cat([places[:offset], features_BD, places[offset + own :]])), offset


def whole(value: Tensor) -> Tensor:
    """A tensor of which every rank holds a share (or a partial sum), gathered; any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def share_of_mean(mean: Tensor, count: Tensor | int) -> Tensor:
    """This rank's mean over `count` things as its share of the mean over the things of all ranks.

    For losses over hidden patches, of which one rank may have more than another: gradients are averaged over ranks as
    if each had as many. The value is then no mean of this rank's any more; the mean over ranks is what it should be.
    """
    if world_size() == 1:
        return mean
    # Every count is below 2^24, so float32 holds it.
    exact = torch.promote_types(mean.dtype, torch.float32)
    own = torch.as_tensor(count, device=mean.device).to(exact)
    return mean * (own / mean_over_ranks(own))


def parts_of_rank(parts: int) -> range:
    """Which of a batch's parts are this rank's. ValueError where the ranks cannot share them equally."""
    if parts % world_size():
        raise ValueError(
            f"the batches of this run have {_count(parts, 'part')}, which {world_size()} devices cannot share equally"
        )
    share = parts // world_size()
    return range(rank() * share, (rank() + 1) * share)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank: what one process was told, all know."""
    if world_size() == 1:
        return flag
    told = torch.tensor([int(flag)])
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told.item())


def from_all_ranks(value: T) -> list[T]:
    """A plain value of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return [value for value in values if value is not None]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
