"""The optimizer as the methods' authors set it: what is decayed, clipped and held back, and the rate of every step.

Lives left of `methods`, because a method's configuration holds its authors' optimizer settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.bert_adamw import BertAdamW
from unmask.ranks import whole
from unmask.schedule import Schedule, warmup_then


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer with warm-up and decay of the learning rate."""

    kind: Annotated[
        Literal["adamw", "sgd", "adamw_bert"],
        Doc("adamw; sgd: with momentum and weight decay added to the gradient; adamw_bert: BERT's arithmetic (M3AE)."),
    ] = "adamw"

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
    sgd_momentum: Annotated[float, Doc("SGD's momentum.")] = 0.9
    weight_decay: Annotated[float, Doc("Weight decay of the parameters that the method decays.")] = 0.05
    weight_decay_end: Annotated[
        float | None, Doc("Weight decay at the end of the run, approached by a cosine; None: it stays.")
    ] = None
    warmup_epochs: Annotated[float, Doc("Epochs of linear warm-up; at most a fifth of the run is used.")] = 40.0
    warmup_start: Annotated[float, Doc("Share of the peak rate at which warm-up begins.")] = 0.0
    decay: Annotated[
        Literal["cosine", "step", "linear"],
        Doc("After warm-up: cosine or straight to min_lr, or one step to a tenth after step_at of the run."),
    ] = "cosine"
    step_at: Annotated[float, Doc("Share of the run after which decay 'step' divides the rate by ten.")] = 0.875
    min_lr: Annotated[float, Doc("Absolute learning rate at the end of the cosine or the line.")] = 0.0
    stretch: Annotated[
        float, Doc("Length of the cosines of rate and weight decay by the run's, which breaks them off. [MSN: 1.25]")
    ] = 1.0
    clip: Annotated[float | None, Doc("Clip the gradient's L2 norm to this; None: no clipping.")] = None
    clip_each: Annotated[bool, Doc("Clip each parameter's gradient by its own norm, not all by the total.")] = False

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
        if self.stretch < 1:
            raise ValueError(f"stretch must be at least 1, got {self.stretch}")

    def peak(self, batch_size: int) -> float:
        """Peak learning rate for a global batch of `batch_size` images."""
        return self.lr if self.lr_batch is None else self.lr * batch_size / self.lr_batch

    def weight_decay_at(self, progress: float) -> float:
        """Weight decay at `progress`: from the start value to the end value by a cosine (DINO)."""
        end = self.weight_decay if self.weight_decay_end is None else self.weight_decay_end
        return Schedule(kind="cosine", start=self.weight_decay, end=end, until=self.stretch).at(progress)

    def at(self, progress: float, *, batch_size: int, epochs: float) -> float:
        """Learning rate at `progress` of a run of `epochs` epochs with global batch `batch_size`."""
        peak = self.peak(batch_size)
        # A warm-up made for hundreds of epochs would swallow a short run.
        warmup = min(self.warmup_epochs / epochs, 0.2)
        if self.decay == "step":
            rate = peak if progress < self.step_at else peak / 10
            after = Schedule(kind="constant", start=rate)
        else:
            until = (self.stretch - warmup) / (1 - warmup)
            after = Schedule(kind=self.decay, start=peak, end=min(self.min_lr, peak), until=until)
        return warmup_then(progress, warmup=warmup, start=peak * self.warmup_start, peak=peak, after=after)


@dataclass(frozen=True, kw_only=True)
class ParameterRule:
    """How the authors treat one trainable parameter."""

    decay: bool
    lr_scale: float = 1.0
    """Factor on the learning rate (M3AE's heads)."""
    constant_lr: bool = False
    """Whether it keeps the peak rate throughout (SimSiam's predictor)."""
    clip: bool = True
    """Whether its gradient counts in clipping (MSN's prototypes do not)."""
    frozen_until: float = 0.0
    """Share of the run during which it is not touched at all (DINO's last layer)."""


Rule = Callable[[str, Tensor], ParameterRule]


def build_optimizer(module: nn.Module, rule: Rule, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters of `module`; rates are set for every step by `follow_schedule`.

    One group for each distinct rule. Every group also holds its rule under "rule" (plain values, so that whoever saves
    the optimizer's state can load it with `weights_only=True`) and the parameters' names, in order, under "names": the
    checkpoint stores optimizer state by name. AdamW is fused where torch can.
    """
    groups: dict[ParameterRule, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            treatment = rule(name, parameter)
            decay = config.weight_decay if treatment.decay else 0.0
            new = {"params": [], "names": [], "rule": asdict(treatment), "weight_decay": decay}
            group = groups.setdefault(treatment, new)
            group["params"].append(parameter)
            group["names"].append(name)
    # Decayed parameters first, so that the order does not depend on which parameter comes first.
    ordered = sorted(groups.values(), key=lambda group: not group["rule"]["decay"])
    if config.kind == "sgd":
        return torch.optim.SGD(ordered, lr=0.0, momentum=config.sgd_momentum)
    if config.kind == "adamw_bert":
        return BertAdamW(ordered, lr=0.0, betas=config.betas, eps=config.eps)
    devices = {parameter.device.type for parameter in module.parameters()}
    fused = devices <= {"cuda", "cpu", "mps"}
    return torch.optim.AdamW(ordered, lr=0.0, betas=config.betas, eps=config.eps, fused=fused)


def set_rates(optimizer: torch.optim.Optimizer, *, rate: float, peak: float, weight_decay: float) -> None:
    """Set every group's learning rate and weight decay for the step to come, by its rule."""
    for group in optimizer.param_groups:
        rule = ParameterRule(**group["rule"])
        group["lr"] = (peak if rule.constant_lr else rate) * rule.lr_scale
        group["weight_decay"] = weight_decay if rule.decay else 0.0


def follow_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, progress: float, *, batch_size: int, epochs: float
) -> float:
    """Set what the schedules of `config` say for the step to come; the learning rate.

    That step is at `progress` of a run of `epochs` epochs with global batch `batch_size`.
    """
    rate = config.at(progress, batch_size=batch_size, epochs=epochs)
    set_rates(optimizer, rate=rate, peak=config.peak(batch_size), weight_decay=config.weight_decay_at(progress))
    return rate


def finish_gradients(optimizer: torch.optim.Optimizer, config: OptimizerConfig, progress: float) -> Tensor:
    """Total L2 norm of all gradients as they are; then clip them, and drop those of parameters that are held back.

    A dropped gradient is None, so the optimizer neither moves nor decays its parameter, nor counts a step for it.
    """
    norm = whole(nn.utils.get_total_norm(_gradients(optimizer.param_groups)))
    if config.clip is not None:
        groups = [group for group in optimizer.param_groups if group["rule"]["clip"]]
        gradients = _gradients(groups)
        if config.clip_each:
            factors = torch._foreach_add(torch._foreach_norm(gradients), 1e-6)
            torch._foreach_reciprocal_(factors)
            torch._foreach_mul_(factors, config.clip)
            torch._foreach_clamp_max_(factors, 1.0)
            torch._foreach_mul_(gradients, factors)
        else:
            # Where all are clipped, their norm is known already.
            known = norm if len(groups) == len(optimizer.param_groups) else whole(nn.utils.get_total_norm(gradients))
            parameters = [value for group in groups for value in group["params"]]
            nn.utils.clip_grads_with_norm_(parameters, config.clip, known)
    for group in optimizer.param_groups:
        if progress < group["rule"]["frozen_until"]:
            for parameter in group["params"]:
                parameter.grad = None
    return norm


def _gradients(groups: list[dict[str, Any]]) -> list[Tensor]:
    return [value.grad for group in groups for value in group["params"] if value.grad is not None]
