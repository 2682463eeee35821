"""One rank is many: W ranks with B images each give the losses and gradients of one with W · B, for every method.

Two processes (gloo, float64) run all methods once, and once more with sharded weights, and four run some; the tests
compare what they left behind. Where the authors' rule is each rank's alone (batch norm of ConMIM's projector, CAN's
negatives), the switch for all ranks is on here.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from conftest import random_batch, tiny_method
from forked_ranks import as_ranks
from method_facts import FACTS
from unmask.data.batch import Batch
from unmask.methods import METHODS
from unmask.methods.base import Method
from unmask.methods.m3ae import CaptionedViews
from unmask.methods.mixmask import MixedViews
from unmask.models.heads import MLPHeadConfig
from unmask.ranks import whole
from unmask.training.sharded import ShardedWeights
from unmask.training.shared import SharedGradients
from unmask.views import Views

WAYS = {2: ("whole", "sharded"), 4: ("whole",)}
"""By number of ranks."""
FOUR = ("conmim", "cmae", "dino", "ibot", "mocov3", "msn", "mixmask", "m3ae")
"""Methods that four ranks run, too: all kinds of things that ranks tell each other (gathered keys, statistics of batch
norm, centres, queues, Sinkhorn's sums, mixtures, captions)."""
CPU = torch.device("cpu")
IMAGES = 3
"""Of each rank."""
SECOND = ("local", "more", "noise_3BZ")
"""Fields of views whose images lie along the second axis."""
PAIRED = ("level_T", "unit_TCHW")
"""Fields of views that hold all first views and then all second ones."""


def shared_method(name: str, things: Path) -> Method:
    """A tiny method in float64 whose statistics are those of all ranks."""
    method = tiny_method(METHODS[name], things=things)
    config, changes = method.config, dict(FACTS[name].changes)
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, MLPHeadConfig) and (value.norm == "batch" or value.last_norm):
            changes[field.name] = replace(value, synchronised=True)
        elif field.name in ("gathered", "class_synchronised"):
            changes[field.name] = True
    return tiny_method(METHODS[name], things=things, changes=changes).double().train()


def part(batch: Batch, number: int, name: str) -> Batch:
    """The images of one rank, with random draws of their own."""
    mine = slice(number * IMAGES, (number + 1) * IMAGES)
    assert batch.labels is not None
    assert batch.texts is not None
    # MixMask draws the share of a mixture once for a whole batch.
    seed = 7 if name == "mixmask" else 7 + number
    return replace(
        batch,
        crops=tuple(crop[mine] for crop in batch.crops),
        boxes=tuple(box[mine] for box in batch.boxes),
        indices=batch.indices[mine],
        labels=batch.labels[mine],
        texts=batch.texts[mine],
        seed=seed,
    )


def double(value: Any) -> Any:
    """The same with all floating-point numbers in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(map(double, value))
    return value


def views_of(method: Method, batch: Batch) -> Views:
    views = method.float().make_views(batch)
    method.double()
    changed: Views = replace(views, **{field.name: double(getattr(views, field.name)) for field in fields(views)})
    return changed


def joined(several: list[Views]) -> Views:
    """The views of all ranks' images as one rank has them."""
    first = several[0]
    assert is_dataclass(first)
    changed: dict[str, Any] = {}
    for field in fields(first):
        values = [getattr(views, field.name) for views in several]
        if field.name in PAIRED:
            halves = [value.chunk(2) for value in values]
            changed[field.name] = torch.cat([half[side] for side in (0, 1) for half in halves])
        elif isinstance(values[0], Tensor):
            changed[field.name] = torch.cat(values, dim=1 if field.name in SECOND else 0)
        elif isinstance(values[0], tuple) and values[0] and isinstance(values[0][0], Tensor):
            changed[field.name] = tuple(map(torch.cat, zip(*values, strict=True)))
        else:
            assert all(value == values[0] for value in values), field.name
            changed[field.name] = values[0]
    if isinstance(first, MixedViews):
        changed["partners"] = tuple(
            torch.cat([partner + rank * IMAGES for rank, partner in enumerate(each)])
            for each in zip(*(views.partners for views in several), strict=True)  # type: ignore[attr-defined]
        )
    if isinstance(first, CaptionedViews):
        # Further pictures come after all pictures.
        images, before, shown = len(several) * IMAGES, 0, []
        for rank, views in enumerate(several):
            assert isinstance(views, CaptionedViews)
            further = views.shown_B - IMAGES + images + before
            shown.append(torch.where(views.shown_B < IMAGES, views.shown_B + rank * IMAGES, further))
            before += len(views.further_FCHW)
        changed["shown_B"] = torch.cat(shown)
    return replace(first, **changed)


def state(method: Method) -> dict[str, Tensor]:
    """What a step leaves behind: gradients, moved targets, and centres, queues, running statistics."""
    parameters = dict(method.named_parameters())
    gradients = {f"gradient.{name}": value.grad for name, value in parameters.items() if value.grad is not None}
    buffers = {f"buffer.{name}": value for name, value in method.named_buffers()}
    left = gradients | buffers | {f"parameter.{name}": value for name, value in parameters.items()}
    return {name: whole(value.detach()).clone() for name, value in left.items()}


def work(number: int, folder: Path) -> None:
    """One rank's step of every method, in each way to share it."""
    world = dist.get_world_size()
    for name in METHODS if world == 2 else FOUR:
        batch = random_batch(shared_method(name, folder / "things"), IMAGES * world)
        for way in WAYS[world]:
            method = shared_method(name, folder / "things")
            torch.manual_seed(number)
            views = views_of(method, part(batch, number, name))  # before anything is shared: it changes the type
            if way == "whole":
                shared: SharedGradients | ShardedWeights = SharedGradients(method, method.losses)
            else:
                shared = ShardedWeights(method, method.losses, CPU)
            losses = shared.losses(views, 0.25)
            torch.stack(list(losses.values())).sum().backward()
            method.update_target(0.25)
            mean = torch.stack([loss.detach() for loss in losses.values()])
            dist.all_reduce(mean)
            left = {"losses": mean / world} | state(method)
            held = sum(local(value).numel() for value in method.parameters())
            left["held"] = torch.tensor(held / sum(value.numel() for value in method.parameters()))
            save_file(
                {key: value.contiguous() for key, value in left.items()}, folder / f"{name}-{world}-{way}-{number}"
            )


def local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what every rank of every world has found for every method."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "things").mkdir()
    for name in METHODS:  # what methods need is made once, not by every rank
        shared_method(name, folder / "things")
    for world in WAYS:
        as_ranks(world, work, folder)
    return folder


@pytest.mark.parametrize(
    ("name", "world", "way"),
    [(name, world, way) for world, ways in WAYS.items() for way in ways for name in (METHODS if world == 2 else FOUR)],
)
def test_many_ranks_are_one(name: str, world: int, way: str, left: Path) -> None:
    method = shared_method(name, left / "things")
    batch = random_batch(method, IMAGES * world)
    several = [views_of(method, part(batch, number, name)) for number in range(world)]
    losses = method.losses(joined(several), 0.25)
    torch.stack(list(losses.values())).sum().backward()
    method.update_target(0.25)
    expected = {"losses": torch.stack([loss.detach() for loss in losses.values()])} | state(method)
    for number in range(world):
        found = load_file(left / f"{name}-{world}-{way}-{number}")
        held = float(found.pop("held"))
        # A tensor whose first dimension is one (a class token) lies on the first rank alone.
        assert held == 1 if way == "whole" else abs(held - 1 / world) < 0.15
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if value.is_floating_point():
                torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-11, msg=f"{key} on rank {number}")
            else:
                assert torch.equal(found[key], value), key
