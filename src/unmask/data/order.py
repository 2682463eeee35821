"""The order in which the images of an epoch are taken: a function of (seed, epoch), the same for any number of ranks.

Images that are equally near are shuffled all together. Shards are read whole, so neighbours in a shard should be taken
at about the same time, and by one machine: shards are shuffled, laid end to end, dealt to the parts of a batch in equal
runs, and images are shuffled within a window of a run (what a shuffle buffer does, but as a pure function, so that a
run resumes at any image).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unmask.data.crop import Stream, sample_generator

WINDOW = 4
"""Shards whose images are mixed, at an average shard's size: so many are open at once for a part of a batch."""


class EpochOrder:
    """The positions of each part of each step of one epoch: `steps` steps of `parts` parts of `batch_size` images.

    Every image comes once at the most; what fills no step is left out, in each epoch other images. `shards`: see
    `Source.shards`.
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        *,
        size: int,
        batch_size: int,
        parts: int,
        shards: NDArray[np.int64] | None = None,
    ) -> None:
        self._batch_size = batch_size
        self._parts = parts
        generator = sample_generator(seed, epoch, 0, Stream.ORDER)
        self._by_shards = shards is not None and len(shards) > 1
        if shards is None or len(shards) < 2:
            self._order = generator.permutation(size)
        else:
            self._order = _laid_out(generator, size, parts, shards)

    def take(self, step: int, part: int) -> NDArray[np.int64]:
        """Positions of the images of a part of a step."""
        if self._by_shards:
            begin = part * (len(self._order) // self._parts) + step * self._batch_size
        else:
            begin = (step * self._parts + part) * self._batch_size
        return self._order[begin : begin + self._batch_size]


def _laid_out(generator: np.random.Generator, size: int, parts: int, shards: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shuffled shards end to end; then shuffled windows within each part's run."""
    ends = np.append(shards[1:], size)
    order = np.concatenate([np.arange(shards[shard], ends[shard]) for shard in generator.permutation(len(shards))])
    run = size // parts
    window = max(1, WINDOW * size // len(shards))
    for part in range(parts):
        mine = order[part * run : (part + 1) * run]
        for begin in range(0, run, window):
            generator.shuffle(mine[begin : begin + window])
    return order
