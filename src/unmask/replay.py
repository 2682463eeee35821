"""A step once more, with everything watched: which image, which layer, which loss was not finite.

Batches follow from (seed, step, part), and weights were kept as the step found them, or are those of the checkpoint
before it, from which the steps between are taken again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.data.batch import Batch
from unmask.data.pixel_range import in_range
from unmask.data.sources import Source, open_source
from unmask.methods.base import Method
from unmask.pretrain import build_method, crop_loader
from unmask.run_folder import RunFolder
from unmask.training.checkpoint import checkpoint_path, load_checkpoint, saved_steps
from unmask.training.trainer import NonFiniteLoss, Trainer


@dataclass(frozen=True)
class Part:
    """One part of a step's batch: its losses, its images, and the first layer whose output is not finite."""

    losses: dict[str, float]
    images: tuple[str, ...]
    layer: str | None


@dataclass(frozen=True)
class Replay:
    """What a step did when it was taken again."""

    step: int
    began_at: int
    """Step of the weights that were at hand."""
    parts: tuple[Part, ...]
    weights: tuple[str, ...]
    """Parameters that were not finite before the step."""
    gradients: tuple[str, ...]
    """Parameters whose gradient is not finite."""
    crops_BCHW: Tensor
    """The first crop of every image of the batch, uint8."""

    @property
    def broken(self) -> bool:
        """Whether anything is not finite."""
        losses = [value for part in self.parts for value in part.losses.values()]
        return bool(self.weights or self.gradients) or any(value - value != 0 for value in losses)


def replay(folder: RunFolder, step: int, device: torch.device) -> Replay:
    """Take `step` of a run of pre-training again, without applying it. ValueError where its weights are gone."""
    config = folder.config()
    path = _weights_before(folder, step)
    checkpoint = None if path is None else load_checkpoint(path, device)
    if checkpoint is None and config.start is not None:
        raise ValueError(f"{folder.path} began from {config.start.weights} and has no weights before step {step}")
    source = in_range(open_source(config.data), config.pixel_range)
    if checkpoint is not None and checkpoint.values["samples"] != len(source):
        raise ValueError(
            f"{config.data} now has {len(source)} images, but the run began with {checkpoint.values['samples']}: "
            "its batches cannot be made again"
        )
    method = build_method(config)
    training = config.training
    trainer = Trainer(method, training, steps_per_epoch=len(source) // training.batch_size, device=device)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    if not trainer.step <= step < trainer.total_steps:
        raise ValueError(f"step {step} is not one of the run's {trainer.total_steps}")
    began = trainer.step
    loader = crop_loader(config, method, source, device, first=began, last=step + 1, mine=range(training.parts))
    batches = iter(loader)
    while trainer.step < step:
        _take(trainer, list(islice(batches, training.parts)))
    weights = tuple(name for name, value in method.named_parameters() if not _finite(value))
    last = list(batches)
    parts = tuple(_watched(method, batch.to(device), trainer.progress, source) for batch in last)
    gradients = tuple(
        name for name, value in method.named_parameters() if value.grad is not None and not _finite(value.grad)
    )
    return Replay(step, began, parts, weights, gradients, torch.cat([batch.crops[0][:, 0] for batch in last]))


def _weights_before(folder: RunFolder, step: int) -> Path | None:
    """The newest file with weights of `step` or before it; None where the random start is what there is."""
    kept = {number: folder.left_out(number) for number in folder.steps_left_out()}
    saved = {number: checkpoint_path(folder.checkpoints, number) for number in saved_steps(folder.checkpoints)}
    usable = {number: path for number, path in (saved | kept).items() if number <= step}
    return usable[max(usable)] if usable else None


def _take(trainer: Trainer[Batch], parts: list[Batch]) -> None:
    try:
        trainer.train_step(parts)
    except NonFiniteLoss:
        if not trainer.reading_is_free:
            return
        trainer.leave_out()


def _watched(method: Method, batch: Batch, progress: float, source: Source) -> Part:
    """Losses and gradients of one part; gradients add up in the parameters."""
    first: list[str] = []

    def look(name: str) -> None:
        def hook(module: nn.Module, given: object, output: object) -> None:
            if not first and isinstance(output, Tensor) and not _finite(output):
                first.append(name)

        hooks.append(method.get_submodule(name).register_forward_hook(hook))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in method.named_modules():
        if not list(module.children()):
            look(name)
    assert batch.seed is not None
    torch.manual_seed(batch.seed)
    losses = method(batch, progress)
    torch.stack(list(losses.values())).sum().backward()
    for handle in hooks:
        handle.remove()
    return Part(
        losses={name: loss.item() for name, loss in losses.items()},
        images=tuple(source.path(index) for index in batch.indices.tolist()),
        layer=first[0] if first else None,
    )


def _finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())
