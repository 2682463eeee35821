"""Tiny versions of every method, and real images to feed them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import pytest
import torch

from unmask.data.batch import Batch
from unmask.methods import METHODS
from unmask.methods.base import Method, MethodConfig
from unmask.models.decoder import DecoderConfig
from unmask.models.heads import MLPHeadConfig

M = TypeVar("M", bound=Method)


def tiny_config(
    config: MethodConfig, *, height: int = 32, width: int = 32, channels: int = 3, patch: int = 8
) -> MethodConfig:
    """The authors' configuration with every network shrunk: two blocks of width 48, heads of width 32."""
    scaled = config.for_images(height, width)
    encoder = replace(scaled.encoder, patch_size=patch, channels=channels, width=48, depth=2, heads=3, drop_path=0.0)
    changes: dict[str, Any] = {"encoder": encoder, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    for field in fields(scaled):
        value = getattr(scaled, field.name)
        if isinstance(value, DecoderConfig):
            changes[field.name] = replace(value, width=32, depth=1, heads=4)
        elif isinstance(value, MLPHeadConfig):
            changes[field.name] = replace(value, hidden=64, out=32)
    return replace(scaled, **changes)


def tiny_method(cls: type[M], *, seed: int = 0, changes: dict[str, Any] | None = None, **sizes: int) -> M:
    """A tiny method whose initial values depend on nothing but the seed."""
    config = replace(tiny_config(cls.Config(), **sizes), **(changes or {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config)


def random_batch(method: Method, size: int = 4, *, seed: int | None = 0) -> Batch:
    """A batch of noise images of the size that the method's crops have."""
    (crop,) = method.crops
    generator = torch.Generator().manual_seed(size)
    shape = (size, method.config.encoder.channels, crop.height, crop.width)
    return Batch.of(torch.randint(256, shape, dtype=torch.uint8, generator=generator), seed=seed)


@pytest.fixture(params=list(METHODS))
def name(request: pytest.FixtureRequest) -> str:
    """The name of every method in turn."""
    return str(request.param)


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """Builds a tiny method from its class (see tiny_method)."""
    return tiny_method


@pytest.fixture
def batch_for() -> Callable[..., Batch]:
    """Makes a batch of noise for a method (see random_batch)."""
    return random_batch
