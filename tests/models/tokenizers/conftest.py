"""Every kind of tokenizer in turn, and images for them."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["dvae", "vq", "vqkd"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind in turn."""
    return str(request.param)


@pytest.fixture
def images() -> torch.Tensor:
    """Three images [3, 3, 32, 40] in [0, 1]."""
    return torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(3))
