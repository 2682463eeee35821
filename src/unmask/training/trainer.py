"""One training step, and the state that a run consists of.

The loop itself is in `unmask.run_loop`; this is what it does with a batch: forward, backward, clip, step, move target.
A step on a GPU is only queued: its figures stay there until somebody settles them, all pending ones in one transfer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from torch import Tensor
from typing_extensions import Doc

from unmask.errors import Failure
from unmask.models.products import gains_by_products, quick_products
from unmask.optimisation import build_optimizer, finish_gradients, follow_schedule
from unmask.ranks import mean_over_ranks, parts_of_rank, world_size
from unmask.trainee import B, Losses, Trainee
from unmask.training.checkpoint import (
    Checkpoint,
    load_module_tensors,
    load_optimizer_tensors,
    module_tensors,
    optimizer_tensors,
)
from unmask.training.sharded import ShardedWeights, gathered
from unmask.training.shared import SharedGradients

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
LOG_DOC = Doc("Trackers that get the figures too: tensorboard, wandb, mlflow, trackio. log.csv is always written.")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long and on what a method is trained: all that needs no look at the data."""

    epochs: Annotated[float, Doc("Passes over the data.")] = 100.0
    seed: Annotated[int, Doc("Everything random follows from this.")] = 0
    device: Annotated[str, Doc("cpu, cuda, cuda:1, mps; auto takes the best there is.")] = "auto"
    precision: Annotated[Precision, Doc("auto: bf16 on GPUs that have it, else fp16; fp32 elsewhere.")] = "auto"
    compile: Annotated[bool, Doc("Compile the losses by torch.compile: slow start, faster steps.")] = False
    log_every: Annotated[int, Doc("Steps between lines of the log.")] = 10
    log: Annotated[tuple[Tracker, ...], LOG_DOC] = ()
    checkpoint_every: Annotated[int, Doc("Steps between checkpoints.")] = 500
    keep_every: Annotated[int, Doc("Checkpoints at multiples of this many steps are kept; 0: the last alone.")] = 0
    evaluate_every: Annotated[float, Doc("Epochs between kNN evaluations, where the data has labels; 0: never.")] = 0.0
    max_bad_share: Annotated[float, Doc("Share of unreadable images past which the run stops.")] = 0.1
    wait_for_disk: Annotated[
        float, Doc("Minutes to wait for room where a full disk refuses a checkpoint; 0: the run ends at once.")
    ] = 0.0
    max_nonfinite: Annotated[
        int, Doc("Steps in a row left out as not finite, after which the weights of the last checkpoint come back.")
    ] = 3


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainingOptions):
    """How a method is trained, with what was chosen for the data."""

    batch_size: Annotated[int, Doc("Images of one optimizer step.")]
    workers: Annotated[int, Doc("Processes of each device that decode images; 0: the training process itself.")]
    parts: Annotated[
        int,
        Doc("Parts of a batch, each with random draws and statistics of its own. Devices share them out."),
    ] = 1

    @property
    def part_size(self) -> int:
        """Images of one part of a batch."""
        return self.batch_size // self.parts

    def __post_init__(self) -> None:
        positive = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "parts": self.parts,
            "max_nonfinite": self.max_nonfinite,
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
        if self.batch_size % self.parts:
            raise ValueError(f"a batch of {self.batch_size} cannot be cut into {self.parts} equal parts")
        for name, span in {"evaluate_every": self.evaluate_every, "wait_for_disk": self.wait_for_disk}.items():
            if not 0 <= span < math.inf:
                raise ValueError(f"{name} must be a number of 0 or more, got {span}")
        if not 0 < self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share must lie in (0, 1], got {self.max_bad_share}")


class NonFiniteLoss(Failure):
    """A loss, gradient or feature is NaN or infinite: the training broke down.

    `what` is not finite, in words, and `step` the number of the step, where one is to blame. `applied`: whether the
    weights are lost.
    """

    def __init__(self, sentence: str, *, what: str = "", step: int | None = None, applied: bool = False) -> None:
        super().__init__(sentence)
        self.what = what
        self.step = step
        self.applied = applied


@dataclass(frozen=True)
class StepResult:
    """Figures of one step."""

    loss: float
    losses: dict[str, float]
    gradient_norm: float
    lr: float


Phase = Callable[[str], AbstractContextManager[None]]
"""Called with the name of each part of a step (`PHASES`); what is done in the context it gives is that part."""
PHASES = ("views", "forward", "backward", "optimizer", "target")


def unwatched(phase: str) -> AbstractContextManager[None]:
    """What a step's parts run in when nobody watches."""
    return nullcontext()


@dataclass(frozen=True)
class _Figures:
    """The figures of a step, still on the device: losses in the order of `names`, then the gradient's norm."""

    step: int
    names: tuple[str, ...]
    values: Tensor
    lr: float
    indices: tuple[Tensor, ...]


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
    """A method, or another trainee, with its optimizer and scaler, and the number of steps taken.

    With `shard` each of several ranks holds a share of all weights only; every rank must then call whatever computes
    with them or saves them. `phase` is told which part of a step begins and ends (`unmask bench` measures so).
    """

    latest: StepResult
    """Figures of the newest finite step that was settled."""

    def __init__(
        self,
        trainee: Trainee[B, Any],
        config: TrainingConfig,
        *,
        steps_per_epoch: int,
        device: torch.device,
        shard: bool = False,
        phase: Phase = unwatched,
    ) -> None:
        self.trainee = trainee.train()
        self.config = config
        self.device = device
        self.step = 0
        self.total_steps = max(1, round(config.epochs * steps_per_epoch))
        self.dtype = choose_precision(config.precision, device)
        losses: Callable[[Any, float], Losses] = torch.compile(trainee.losses) if config.compile else trainee.losses
        self.sharded = shard and world_size() > 1
        self._shared: SharedGradients | ShardedWeights | None = None
        if self.sharded:
            # Before anything else goes to the device, which may not hold it whole.
            self._shared = ShardedWeights(trainee, losses, device)
        trainee.to(device)
        if world_size() > 1 and not self.sharded:
            self._shared = SharedGradients(trainee, losses)
        # One rank's gradients are its own: nothing need be wrapped.
        self._losses = losses if self._shared is None else self._shared.losses
        self.optimizer = build_optimizer(trainee, trainee.rule, trainee.optimizer_config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.mine = parts_of_rank(config.parts)
        plain = device.type == "cpu" and self.dtype is None and not config.compile
        self._products = quick_products if plain and gains_by_products(trainee) else nullcontext
        self._phase = phase
        self._pending: list[_Figures] = []

    @property
    def progress(self) -> float:
        """Share of all steps that were taken."""
        return self.step / self.total_steps

    @property
    def _guarded(self) -> bool:
        """Whether the optimizer itself leaves out a step that it is told is not finite (in fp16 the scaler tells)."""
        return not self.scaler.is_enabled() and bool(self.optimizer.defaults.get("fused"))

    def at_hand(self, call: Callable[[], T]) -> T:
        """Call something that computes with the weights outside a step."""
        return call() if self._shared is None else self._shared.at_hand(call)

    @property
    def checkpoint_device(self) -> torch.device:
        """Where a checkpoint is to be read to: what is sharded does not fit on a device whole."""
        return torch.device("cpu") if self.sharded else self.device

    @property
    def reading_is_free(self) -> bool:
        """Whether there is no device to wait for: figures are then read in every step, before it is applied."""
        return self.device.type == "cpu"

    def train_step(self, batches: Sequence[B]) -> StepResult:
        """`take_step`, waited for: its figures. NonFiniteLoss where they are not finite."""
        self.take_step(batches)
        self.settle()
        return self.latest

    def take_step(self, batches: Sequence[B]) -> None:
        """One optimizer step on `batches`, this rank's parts of one batch (`mine`): forward, backward, clip, step, move
        the target. Gradients are averaged over all parts of all ranks.

        A GPU is not waited for: `settle` reads the figures. (Except in fp16 with an optimizer that is not fused, where
        torch's scaler itself looks whether the gradient is finite.) On the CPU, where there is nothing to wait for, a
        step that is not finite raises NonFiniteLoss before it is applied; on a GPU a fused optimizer leaves it out.
        """
        settings, progress = self.trainee.optimizer_config, self.progress
        batch_size, epochs = self.config.batch_size, self.config.epochs
        rate = follow_schedule(self.optimizer, settings, progress, batch_size=batch_size, epochs=epochs)
        if self.trainee.target_moves == "before step":
            self._move_target(progress)
        self.optimizer.zero_grad(set_to_none=True)
        with self._products():
            sums = self._gradients(batches, progress)
        with self._phase("optimizer"):
            self.scaler.unscale_(self.optimizer)
            norm = finish_gradients(self.optimizer, settings, progress)
            figures = _Figures(
                self.step,
                tuple(sums),
                mean_over_ranks(torch.stack([*sums.values(), norm])),
                rate,
                tuple(batch.indices for batch in batches),
            )
            if self.reading_is_free:
                self._judge([figures])
            else:
                self._pending.append(figures)
                if self._guarded:
                    # The fused kernel looks at this flag where it is, on the device.
                    broken = ~figures.values.isfinite().all()
                    self.optimizer.found_inf = broken.to(torch.float32)  # type: ignore[attr-defined]
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.trainee.target_moves == "after step":
            self._move_target(progress)
        self.step += 1

    def settle(self) -> None:
        """Read the figures of all steps since the last time, in one transfer; `latest` is then the last step's.

        NonFiniteLoss for the first step whose figures are not finite, and with the next call for the next one. Where
        the optimizer is not fused, such a step has been applied and the weights are lost.
        """
        if self._pending:
            self._judge(self._pending)

    def leave_out(self) -> None:
        """Take the next step without its batch: the weights stay as they are."""
        self.step += 1

    def _gradients(self, batches: Sequence[B], progress: float) -> Losses:
        """Forward and backward of all parts: the losses of the whole batch by name."""
        sums: Losses = {}
        assert len(batches) == len(self.mine), "a step takes all of a rank's parts"
        for number, batch in enumerate(batches, start=1):
            assert batch.seed is not None, "a loader's batches carry their seed"
            # Stochastic depth draws from torch's own state: tie that to the step too.
            torch.manual_seed(batch.seed)
            with self._phase("views"), torch.no_grad():
                views = self.trainee.make_views(batch.to(self.device))
            last = number == len(batches)
            with nullcontext() if last or self._shared is None else self._shared.kept_apart():
                with self._phase("forward"), self._autocast():
                    losses = {name: loss / len(batches) for name, loss in self._losses(views, progress).items()}
                    total = torch.stack(list(losses.values())).sum()
                with self._phase("backward"):
                    self.scaler.scale(total).backward()
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
        return sums

    def _move_target(self, progress: float) -> None:
        with self._phase("target"):
            self.trainee.update_target(progress)

    def _autocast(self) -> Any:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _judge(self, pending: Sequence[_Figures]) -> None:
        """Read the figures of some steps; NonFiniteLoss for the first that is not finite."""
        values = iter(torch.cat([figures.values for figures in pending]).tolist())
        self._pending = []
        for number, figures in enumerate(pending, start=1):
            losses = {name: next(values) for name in figures.names}
            norm = next(values)
            bad = [name for name, value in losses.items() if not _finite(value)]
            # With fp16 an infinite gradient is the scaler's business: it skips the step and lowers its scale.
            if bad or not (_finite(norm) or self.scaler.is_enabled()):
                what = f"loss {bad[0]!r} is {losses[bad[0]]}" if bad else f"the gradient's norm is {norm}"
                self._pending = list(pending[number:])
                indices = torch.cat(figures.indices).tolist()
                shown = ", ".join(map(str, indices[:32])) + (", ..." if len(indices) > 32 else "")
                raise NonFiniteLoss(
                    f"{what} at step {figures.step}, samples {shown}; the last checkpoint is intact and nothing after "
                    "it is kept: try a lower --lr, clipping, or --precision fp32",
                    what=f"{what}, samples {shown}",
                    step=figures.step,
                    applied=not (self.reading_is_free or self._guarded),
                )
            self.latest = StepResult(loss=sum(losses.values()), losses=losses, gradient_norm=norm, lr=figures.lr)

    def state(self, values: dict[str, Any]) -> Checkpoint:
        """Everything that the rest of the run depends on, and `values` beside it. NonFiniteLoss as from `settle`.

        Of weights that are sharded the first rank alone gets what all hold.
        """
        self.settle()
        tensors = gathered(module_tensors(self.trainee) | optimizer_tensors(self.optimizer))
        return Checkpoint(tensors, values | {"step": self.step, "scaler": self.scaler.state_dict()})

    def is_finite(self, state: Checkpoint) -> bool:
        """Whether all parameters in what `state` gave are finite. Buffers need not be: masks may hold infinities."""
        names = (f"model.{name}" for name, _ in self.trainee.named_parameters())
        return all(bool(state.tensors[name].isfinite().all()) for name in names)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same method."""
        load_module_tensors(self.trainee, checkpoint.tensors)
        load_optimizer_tensors(self.optimizer, checkpoint.tensors)
        self.scaler.load_state_dict(checkpoint.values["scaler"])
        self.step = int(checkpoint.values["step"])


def _finite(value: float) -> bool:
    return value - value == 0
