"""One training step, and the state that a run consists of.

The loop itself is in `unmask.run_loop`; this is what it does with a batch: forward, backward, clip, step, move target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from unmask.errors import Failure
from unmask.optimisation import build_optimizer, finish_gradients, set_rates
from unmask.trainee import B, Losses, Trainee
from unmask.training.checkpoint import (
    Checkpoint,
    load_module_tensors,
    load_optimizer_tensors,
    module_tensors,
    optimizer_tensors,
)

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long and on what a method is trained: all that needs no look at the data."""

    epochs: Annotated[float, Doc("Passes over the data.")] = 100.0
    accumulate: Annotated[int, Doc("Parts into which a batch is cut, one after the other, to save memory.")] = 1
    seed: Annotated[int, Doc("Everything random follows from this.")] = 0
    device: Annotated[str, Doc("cpu, cuda, cuda:1, mps; auto takes the best there is.")] = "auto"
    precision: Annotated[Precision, Doc("auto: bf16 on GPUs that have it, else fp16; fp32 elsewhere.")] = "auto"
    compile: Annotated[bool, Doc("Compile the losses by torch.compile: slow start, faster steps.")] = False
    log_every: Annotated[int, Doc("Steps between lines of the log.")] = 10
    checkpoint_every: Annotated[int, Doc("Steps between checkpoints.")] = 500
    keep_every: Annotated[int, Doc("Checkpoints at multiples of this many steps are kept; 0: the last alone.")] = 0
    evaluate_every: Annotated[float, Doc("Epochs between kNN evaluations, where the data has labels; 0: never.")] = 0.0
    max_bad_share: Annotated[float, Doc("Share of unreadable images past which the run stops.")] = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainingOptions):
    """How a method is trained, with what was chosen for the data."""

    batch_size: Annotated[int, Doc("Images of one optimizer step.")]
    workers: Annotated[int, Doc("Processes that decode images; 0: the training process itself.")]

    def __post_init__(self) -> None:
        positive = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "log_every": self.log_every,
            "checkpoint_every": self.checkpoint_every,
        }
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {self.seed}")
        for name, value in {"workers": self.workers, "keep_every": self.keep_every}.items():
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"a batch of {self.batch_size} cannot be cut into {self.accumulate} equal parts")
        if not 0 <= self.evaluate_every < math.inf:
            raise ValueError(f"evaluate_every must be a number of 0 or more, got {self.evaluate_every}")
        if not 0 < self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share must lie in (0, 1], got {self.max_bad_share}")


class NonFiniteLoss(Failure):
    """A loss, gradient or feature is NaN or infinite: the training broke down."""


@dataclass(frozen=True)
class StepResult:
    """Figures of one step."""

    loss: float
    losses: dict[str, float]
    gradient_norm: float
    lr: float


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA, then MPS, then the CPU. ValueError where it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps") from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise ValueError(f"device {name!r} is not available on this machine")
    return device


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype for autocast on `device`; None for plain float32."""
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


class Trainer(Generic[B]):
    """A method, or another trainee, with its optimizer and scaler, and the number of steps taken."""

    def __init__(
        self, trainee: Trainee[B, Any], config: TrainingConfig, *, steps_per_epoch: int, device: torch.device
    ) -> None:
        self.trainee = trainee.to(device).train()
        self.config = config
        self.device = device
        self.step = 0
        self.total_steps = max(1, round(config.epochs * steps_per_epoch))
        self.dtype = choose_precision(config.precision, device)
        self.optimizer = build_optimizer(trainee, trainee.rule, trainee.optimizer_config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._losses: Callable[[Any, float], Losses] = (
            torch.compile(trainee.losses) if config.compile else trainee.losses
        )

    @property
    def progress(self) -> float:
        """Share of all steps that were taken."""
        return self.step / self.total_steps

    def train_step(self, batches: Sequence[B]) -> StepResult:
        """One optimizer step on `batches`, the parts of one batch: forward, backward, clip, step, move the target."""
        settings, progress = self.trainee.optimizer_config, self.progress
        rate = settings.at(progress, batch_size=self.config.batch_size, epochs=self.config.epochs)
        peak = settings.peak(self.config.batch_size)
        set_rates(self.optimizer, rate=rate, peak=peak, weight_decay=settings.weight_decay_at(progress))
        if self.trainee.target_moves == "before step":
            self.trainee.update_target(progress)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for batch in batches:
            assert batch.seed is not None, "a loader's batches carry their seed"
            # Stochastic depth draws from torch's own state: tie that to the step too.
            torch.manual_seed(batch.seed)
            on_device = batch.to(self.device)
            with torch.no_grad():
                views = self.trainee.make_views(on_device)
            with self._autocast():
                losses = {name: loss / len(batches) for name, loss in self._losses(views, progress).items()}
                total = torch.stack(list(losses.values())).sum()
            self.scaler.scale(total).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = finish_gradients(self.optimizer, settings, progress)
        # One transfer for all figures of the step.
        *values, gradient_norm = torch.stack([*sums.values(), norm]).tolist()
        named = dict(zip(sums, values, strict=True))
        self._require_finite(named, gradient_norm, batches)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.trainee.target_moves == "after step":
            self.trainee.update_target(progress)
        self.step += 1
        return StepResult(loss=sum(values), losses=named, gradient_norm=gradient_norm, lr=rate)

    def _autocast(self) -> Any:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _require_finite(self, losses: dict[str, float], norm: float, batches: Sequence[B]) -> None:
        bad = [name for name, value in losses.items() if not _finite(value)]
        # With fp16 an infinite gradient is the scaler's business: it skips the step and lowers its scale.
        if not bad and (_finite(norm) or self.scaler.is_enabled()):
            return
        what = f"loss {bad[0]!r} is {losses[bad[0]]}" if bad else f"the gradient's norm is {norm}"
        indices = [int(index) for batch in batches for index in batch.indices]
        shown = ", ".join(map(str, indices[:32])) + (", ..." if len(indices) > 32 else "")
        raise NonFiniteLoss(
            f"{what} at step {self.step}, samples {shown}; the step was not applied and the last checkpoint is intact: "
            "try a lower --lr, clipping, or --precision fp32"
        )

    def state(self, values: dict[str, Any]) -> Checkpoint:
        """Everything that the rest of the run depends on, and `values` beside it."""
        tensors = module_tensors(self.trainee) | optimizer_tensors(self.optimizer)
        return Checkpoint(tensors, values | {"step": self.step, "scaler": self.scaler.state_dict()})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same method."""
        load_module_tensors(self.trainee, checkpoint.tensors)
        load_optimizer_tensors(self.optimizer, checkpoint.tensors)
        self.scaler.load_state_dict(checkpoint.values["scaler"])
        self.step = int(checkpoint.values["step"])


def _finite(value: float) -> bool:
    return value - value == 0
