"""Libraries that draw from global random states, made a function of a generator of ours.

timm's RandAugment and mixup draw from Python's and NumPy's global state, torchvision's transforms from torch's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's (CPU) global random states follow from `seed` inside, and are as before after."""
    before_python, before_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before_python)
            np.random.set_state(before_numpy)
