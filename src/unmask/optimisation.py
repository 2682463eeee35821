"""AdamW as the methods' authors set it: which parameters are decayed, and the learning rate of every step.

Lives left of `methods`, because a method's configuration holds its authors' optimizer settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.schedule import Schedule, warmup_then


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up and decay of the learning rate."""

    lr: Annotated[
        float,
        Doc("Peak learning rate; per `lr_batch` images of global batch where that is set, else absolute."),
    ] = 1.5e-4
    lr_batch: Annotated[
        int | None,
        Doc("Linear scaling rule: the rate is lr x global batch / lr_batch. None: lr is absolute."),
    ] = 256
    betas: Annotated[tuple[float, float], Doc("AdamW's decay of its first and second moments.")] = (0.9, 0.95)
    eps: Annotated[float, Doc("AdamW's epsilon.")] = 1e-8
    weight_decay: Annotated[float, Doc("Decoupled weight decay of the parameters that the method decays.")] = 0.05
    warmup_epochs: Annotated[float, Doc("Epochs of linear warm-up; at most a fifth of the run is used.")] = 40.0
    warmup_start: Annotated[float, Doc("Share of the peak rate at which warm-up begins.")] = 0.0
    decay: Annotated[
        Literal["cosine", "step"],
        Doc("After warm-up: cosine to min_lr, or one step to a tenth after step_at of the run."),
    ] = "cosine"
    step_at: Annotated[float, Doc("Share of the run after which decay 'step' divides the rate by ten.")] = 0.875
    min_lr: Annotated[float, Doc("Absolute learning rate at the end of the cosine.")] = 0.0
    clip: Annotated[float | None, Doc("Clip the gradient's total L2 norm to this; None: no clipping.")] = None

    def __post_init__(self) -> None:
        at_least_zero = {
            "lr": self.lr,
            "min_lr": self.min_lr,
            "weight_decay": self.weight_decay,
            "warmup_epochs": self.warmup_epochs,
        }
        for name, value in at_least_zero.items():
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        for name, limit in {"lr_batch": self.lr_batch, "clip": self.clip}.items():
            if limit is not None and limit <= 0:
                raise ValueError(f"{name} must be above 0, got {limit}")

    def peak(self, batch_size: int) -> float:
        """Peak learning rate for a global batch of `batch_size` images."""
        return self.lr if self.lr_batch is None else self.lr * batch_size / self.lr_batch

    def at(self, progress: float, *, batch_size: int, epochs: float) -> float:
        """Learning rate at `progress` of a run of `epochs` epochs with global batch `batch_size`."""
        peak = self.peak(batch_size)
        # A warm-up made for hundreds of epochs would swallow a short run.
        warmup = min(self.warmup_epochs / epochs, 0.2)
        if self.decay == "step":
            rate = peak if progress < self.step_at else peak / 10
            after = Schedule(kind="constant", start=rate)
        else:
            after = Schedule(kind="cosine", start=peak, end=min(self.min_lr, peak))
        return warmup_then(progress, warmup=warmup, start=peak * self.warmup_start, peak=peak, after=after)


def parameter_groups(
    module: nn.Module, decays: Callable[[str, Tensor], bool], weight_decay: float
) -> list[dict[str, object]]:
    """Trainable parameters of `module` in two groups: decayed, and not.

    Every group also holds the parameters' names under "names", in order: the checkpoint stores optimizer state by name.
    """
    decayed: dict[str, object] = {"params": [], "names": [], "weight_decay": weight_decay}
    free: dict[str, object] = {"params": [], "names": [], "weight_decay": 0.0}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = decayed if decays(name, parameter) else free
            params, names = group["params"], group["names"]
            assert isinstance(params, list)
            assert isinstance(names, list)
            params.append(parameter)
            names.append(name)
    return [group for group in (decayed, free) if group["params"]]


def build_adamw(module: nn.Module, decays: Callable[[str, Tensor], bool], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `module`; the learning rate is set at every step by the trainer.

    Fused where torch has a fused kernel for the device and dtype, otherwise one multi-tensor call.
    """
    groups = parameter_groups(module, decays, config.weight_decay)
    devices = {parameter.device.type for parameter in module.parameters()}
    fused = devices <= {"cuda", "cpu", "mps"}
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=fused)
