"""Tiny versions of every method, and real images to feed them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from method_facts import FACTS, Facts
from unmask.data.batch import Batch
from unmask.methods import METHODS
from unmask.methods.base import Method, MethodConfig
from unmask.models.build import fixed_patch
from unmask.models.cross_decoder import CrossDecoderConfig
from unmask.models.decoder import DecoderConfig
from unmask.models.heads import MLPHeadConfig

M = TypeVar("M", bound=Method)


def tiny_config(
    config: MethodConfig, *, height: int = 32, width: int = 32, channels: int = 3, patch: int = 8
) -> MethodConfig:
    """The authors' configuration with every network shrunk: two blocks of width 48, heads of width 32."""
    scaled = config.for_images(height, width)
    named = scaled.encoder
    if fixed_patch(named.name) is not None:  # a network whose sizes nobody can set
        named = replace(named, name="vit_tiny_patch16_224")
    encoder = replace(named, patch_size=patch, channels=channels, width=48, depth=2, heads=3, drop_path=0.0)
    changes: dict[str, Any] = {"encoder": encoder, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    for field in fields(scaled):
        value = getattr(scaled, field.name)
        if isinstance(value, DecoderConfig | CrossDecoderConfig):
            changes[field.name] = replace(value, width=32, depth=1, heads=4)
        elif isinstance(value, MLPHeadConfig):
            changes[field.name] = replace(value, hidden=64, out=32)
    return replace(scaled, **changes)


def tiny_method(cls: type[M], *, things: Path, seed: int = 0, changes: dict[str, Any] | None = None, **sizes: int) -> M:
    """A tiny method whose initial values depend on nothing but the seed; `things`: a folder for what it needs."""
    facts = next((facts for key, facts in FACTS.items() if METHODS.get(key) is cls), Facts())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = replace(tiny_config(cls.Config(), **sizes), **facts.changes)
        if facts.prepare is not None:
            config = facts.prepare(config, things)
        torch.manual_seed(seed)
        return cls(replace(config, **(changes or {})))


def random_batch(method: Method, size: int = 4, *, seed: int | None = 0) -> Batch:
    """A batch of noise images of the sizes that the method's crops have, with boxes, labels and captions."""
    generator = torch.Generator().manual_seed(size)
    channels = method.config.encoder.channels
    crops, boxes = [], []
    for crop in method.crops:
        shape = (size, crop.count, channels, crop.height, crop.width)
        crops.append(torch.randint(256, shape, dtype=torch.uint8, generator=generator))
        corner_BV2 = torch.randint(40, (size, crop.count, 2), generator=generator)
        extent_BV2 = torch.randint(30, 60, (size, crop.count, 2), generator=generator)
        boxes.append(torch.cat([corner_BV2, extent_BV2, torch.full_like(corner_BV2, 100)], dim=2).float())
    return Batch(
        crops=tuple(crops),
        boxes=tuple(boxes),
        indices=torch.arange(size),
        seed=seed,
        labels=torch.arange(size) % 3,
        texts=tuple(f"a small picture of thing number {index % 5}" for index in range(size)),
    )


@pytest.fixture(params=list(METHODS))
def name(request: pytest.FixtureRequest) -> str:
    """The name of every method in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what methods need beforehand."""
    return tmp_path_factory.mktemp("things")


@pytest.fixture
def tiny(things: Path) -> Callable[..., Any]:
    """Builds a tiny method from its class (see tiny_method)."""
    return partial(tiny_method, things=things)


@pytest.fixture
def batch_for() -> Callable[..., Batch]:
    """Makes a batch of noise for a method (see random_batch)."""
    return random_batch
