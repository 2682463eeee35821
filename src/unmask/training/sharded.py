"""Weights of which every rank holds a share: parameters, their gradients and moments, targets too (torch's FSDP2).

Each block of an encoder is gathered when it is computed and let go afterwards, forward and backward; the rest of a
method (embeddings, heads, decoders) is gathered for a whole step. Losses, gradients and moved targets equal those of
whole weights, for every method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from unmask.models.encoder import Encoder
from unmask.ranks import rank, whole
from unmask.trainee import Losses
from unmask.training.shared import Caller

T = TypeVar("T")


class ShardedWeights:
    """Spreads the weights of a trainee over all ranks, on `device`. It must be the same on all of them before.

    What an optimizer is built on afterwards are shares. Same interface as `SharedGradients`.
    """

    def __init__(self, trainee: nn.Module, losses: Callable[[Any, float], Losses], device: torch.device) -> None:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        # Inner ones first: an outer one takes what is left.
        for block in _blocks(trainee):
            fully_shard(block, mesh=mesh)
        # What belongs to no block is gathered for whatever is called through this. Both a module and what torch makes
        # of it; no one type says so.
        self._root: Any = fully_shard(Caller(trainee), mesh=mesh)
        self._losses = losses

    def losses(self, views: Any, progress: float) -> Losses:
        """The losses of this rank's part."""
        found: Losses = self._root(self._losses, views, progress)
        return found

    def kept_apart(self) -> AbstractContextManager[None]:
        """Every part's gradients are averaged at once: to keep them whole until the last one is what must not be."""
        return nullcontext()

    def at_hand(self, call: Callable[[], T]) -> T:
        """Call with all weights at hand, without gradients. Every rank must."""
        try:
            with torch.no_grad():
                found: T = self._root(call)
        finally:
            self._root.reshard()
        return found


def _blocks(trainee: nn.Module) -> Iterator[nn.Module]:
    for module in trainee.modules():
        if isinstance(module, Encoder):
            yield from module.blocks


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are without shards, on the CPU where they had any, one after the other; other ranks than the
    first one get only what is not sharded. Every rank must call it."""
    found = {}
    for name, value in tensors.items():
        if not isinstance(value, DTensor):
            found[name] = value
            continue
        together = whole(value.detach())
        if rank() == 0:
            found[name] = together.cpu()
    return found


def shared_out(value: Tensor, like: Tensor) -> Tensor:
    """This rank's share of a whole tensor that all ranks have, where `like` is sharded; else the tensor itself."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    # No rank need be sent what it has.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
