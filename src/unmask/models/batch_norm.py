"""Batch norm whose statistics are those of all ranks.

Shape legend: T positions of this rank (samples, or tokens of all samples), D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.ranks import shared_sum, world_size


class RankBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` with the mean and the variance of all ranks' positions, whose gradients flow between ranks.

    What `nn.SyncBatchNorm` computes, which exists on GPUs only; names of parameters and buffers are the same. Ranks may
    hold differently many positions. Alone, or in eval mode, it is `nn.BatchNorm1d` itself.
    """

    def forward(self, input: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """The normalised positions."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        # Half precision has not the digits for a sum over a batch.
        x_TD = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x_TD.new_full((1,), len(x_TD))
        # The mean first, then squares of what is left: squares of far-off values would drown their differences.
        sums = shared_sum(torch.cat([x_TD.sum(dim=0), count]))
        total = sums[-1].detach()
        centred_TD = x_TD - sums[:-1] / total
        variance_D = shared_sum(centred_TD.pow(2).sum(dim=0)) / total
        self._remember(sums[:-1].detach() / total, variance_D.detach() * total / (total - 1))
        normed_TD = centred_TD * (variance_D + self.eps).rsqrt()
        if self.affine:
            normed_TD = normed_TD * self.weight + self.bias
        return normed_TD.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean_D: Tensor, variance_D: Tensor) -> None:
        """Move the running statistics, as `nn.BatchNorm1d` does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_D.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance_D.to(self.running_var.dtype), self.momentum)
