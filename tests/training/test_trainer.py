"""One step of training: what it applies, what it refuses to apply, and that a restored trainer takes the same one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny_runs import tiny_config, tiny_settings
from unmask.data.batch import Batch
from unmask.methods import METHODS
from unmask.methods.base import MethodConfig
from unmask.methods.conmim import ConMIM
from unmask.methods.mae import MAE
from unmask.training.trainer import (
    PHASES,
    NonFiniteLoss,
    Precision,
    Trainer,
    TrainingConfig,
    choose_device,
    choose_precision,
)
from unmask.views import Views, normalise, to_float

CPU = torch.device("cpu")


def trainer_of(
    method: str, settings: MethodConfig | None = None, *, cls: type[Any] | None = None, **training: Any
) -> Trainer:
    """A trainer of a tiny method at its random start, 4 steps an epoch, 2 epochs."""
    config = tiny_config(method, Path("nowhere"), **training)
    torch.manual_seed(0)
    built = (METHODS[method] if cls is None else cls)(config.settings if settings is None else settings)
    return Trainer(built, config.training, steps_per_epoch=4, device=CPU)


def batch_of(trainer: Trainer, count: int = 8, *, seed: int = 3, first: int = 0) -> Batch:
    """Random images of the size that the method takes, of two classes."""
    generator = torch.Generator().manual_seed(first)
    indices = torch.arange(first, first + count)
    crops = tuple(
        torch.randint(0, 256, (count, crop.count, 3, crop.height, crop.width), dtype=torch.uint8, generator=generator)
        for crop in trainer.trainee.crops
    )
    boxes = tuple(
        torch.tensor([0, 0, crop.height, crop.width, crop.height, crop.width]).float().expand(count, crop.count, 6)
        for crop in trainer.trainee.crops
    )
    texts = tuple(f"picture {index} of {count}" for index in range(count))
    return Batch(crops=crops, boxes=boxes, indices=indices, seed=seed, labels=indices % 2, texts=texts)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.trainee.state_dict().items()}


def with_optimizer(method: str, **changes: Any) -> MethodConfig:
    settings = tiny_settings(method)
    return replace(settings, optimizer=replace(settings.optimizer, **changes))


class PlainMAE(MAE):
    """MAE in float64 whose views depend on the images alone: the same left half is hidden in all."""

    def make_views(self, batch: Batch) -> Views:
        images = normalise(to_float(batch.crops[0][:, 0]), self.config.mean, self.config.std)
        rows, columns = self.encoder.grid
        mask_N = torch.arange(rows * columns) % columns < columns // 2
        return Views(online=images.double(), mask_BN=mask_N.expand(batch.size, -1))


def test_two_halves_give_the_gradient_of_the_whole_batch() -> None:
    whole, halves = (trainer_of("mae", cls=PlainMAE, parts=parts) for parts in (1, 2))
    for trainer in (whole, halves):
        trainer.trainee.double()
    batch = batch_of(whole)
    parts = [
        replace(
            batch,
            crops=tuple(crop[half] for crop in batch.crops),
            boxes=tuple(box[half] for box in batch.boxes),
            indices=batch.indices[half],
            labels=None,
            texts=None,
        )
        for half in (slice(0, 4), slice(4, 8))
    ]
    one, two = whole.train_step([batch]), halves.train_step(parts)
    assert two.loss == pytest.approx(one.loss, rel=1e-12)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-12)
    other = dict(halves.trainee.named_parameters())
    for name, parameter in whole.trainee.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(other[name].grad, parameter.grad, rtol=1e-9, atol=1e-15, msg=name)


def test_the_gradient_is_clipped_and_its_own_norm_reported() -> None:
    free = trainer_of("mae", with_optimizer("mae", clip=None))
    full = free.train_step([batch_of(free)]).gradient_norm
    clipped = trainer_of("mae", with_optimizer("mae", clip=full / 4))
    assert clipped.train_step([batch_of(clipped)]).gradient_norm == pytest.approx(full)
    left = torch.stack([p.grad.norm() for p in clipped.trainee.parameters() if p.grad is not None]).norm()
    assert float(left) == pytest.approx(full / 4, rel=1e-4)


def test_the_learning_rate_follows_the_schedule() -> None:
    trainer = trainer_of("mae", with_optimizer("mae", lr=1e-3, warmup_epochs=0.25, min_lr=1e-5))
    assert trainer.total_steps == 8
    used = []
    for step in range(8):
        expected = trainer.trainee.config.optimizer.at(step / 8, batch_size=8, epochs=2)
        result = trainer.train_step([batch_of(trainer, seed=step)])
        assert result.lr == expected
        assert all(group["lr"] == expected for group in trainer.optimizer.param_groups)
        used.append(result.lr)
    assert used[0] == 0
    assert max(used) == pytest.approx(1e-3 * 8 / 256)
    assert trainer.progress == 1


def test_the_target_moves_after_the_step() -> None:
    trainer = trainer_of("conmim", with_optimizer("conmim", warmup_start=1.0))
    method = trainer.trainee
    assert isinstance(method, ConMIM)
    before = weights(trainer)
    trainer.train_step([batch_of(trainer)])
    after = weights(trainer)
    for name, parameter in method.encoder.named_parameters():
        old, new = before[f"target_encoder.{name}"], after[f"target_encoder.{name}"]
        if parameter.requires_grad:
            assert not torch.equal(after[f"encoder.{name}"], before[f"encoder.{name}"]), name
        torch.testing.assert_close(new, 0.996 * old + 0.004 * parameter.detach(), msg=name)


def test_a_loss_that_is_not_finite_changes_no_weight() -> None:
    trainer = trainer_of("mae", with_optimizer("mae", warmup_start=1.0))
    trainer.train_step([batch_of(trainer)])
    with torch.no_grad():
        trainer.trainee.get_parameter("decoder.head.bias")[0] = math.inf
    before = weights(trainer)
    moments = {name: value.clone() for name, value in trainer.state({}).tensors.items()}
    with pytest.raises(NonFiniteLoss) as error:
        trainer.train_step([batch_of(trainer, 40, first=100)])
    assert re.fullmatch(
        r"loss 'reconstruction' is (inf|nan) at step 1, samples 100, 101, .*, 131, \.\.\.; "
        r"the last checkpoint is intact and nothing after it is kept: "
        r"try a lower --lr, clipping, or --precision fp32",
        str(error.value),
    )
    assert trainer.step == 1
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name]), name
    for name, value in trainer.state({}).tensors.items():
        assert torch.equal(value, moments[name]), name


def test_figures_that_nobody_reads_wait_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    read, pending = trainer_of("mae"), trainer_of("mae")
    expected = [read.train_step([batch_of(read, seed=seed)]) for seed in range(3)]
    monkeypatch.setattr(Trainer, "reading_is_free", False)
    for seed in range(3):
        pending.take_step([batch_of(pending, seed=seed)])
    pending.settle()
    assert pending.latest == expected[-1]
    pending.settle()
    assert pending.latest == expected[-1]
    assert pending.step == 3


def break_step(trainer: Trainer[Any], broken: int, steps: int) -> dict[str, Tensor]:
    """Take steps of which one has an infinite gradient; the weights before that one."""
    before: dict[str, Tensor] = {}
    for step in range(steps):
        hook = None
        if step == broken:
            before = weights(trainer)
            hook = trainer.trainee.get_parameter("decoder.head.weight").register_hook(explode)
        trainer.take_step([batch_of(trainer, 3, first=10 * step)])
        if hook is not None:
            hook.remove()
    return before


def test_a_broken_step_that_is_read_late_was_left_out_by_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "reading_is_free", False)
    late = trainer_of("mae", with_optimizer("mae", warmup_start=1.0))
    break_step(late, 2, 4)
    with pytest.raises(
        NonFiniteLoss, match=r"^the gradient's norm is (inf|nan) at step 2, samples 20, 21, 22; "
    ) as error:
        late.settle()
    assert (error.value.step, error.value.applied) == (2, False)
    late.settle()  # the one after it was taken
    monkeypatch.undo()
    without = trainer_of("mae", with_optimizer("mae", warmup_start=1.0))
    for step in range(4):
        if step == 2:
            without.leave_out()
        else:
            without.train_step([batch_of(without, 3, first=10 * step)])
    assert late.latest == without.latest
    for name, value in weights(late).items():
        assert torch.equal(value, weights(without)[name]), name


def test_every_broken_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "reading_is_free", False)
    trainer = trainer_of("mae", with_optimizer("mae", warmup_start=1.0))
    for step in range(4):
        if step == 1:
            with torch.no_grad():
                trainer.trainee.get_parameter("decoder.head.bias")[0] = math.inf
        trainer.take_step([batch_of(trainer, 3, first=10 * step)])
    named = []
    for _ in range(3):
        with pytest.raises(NonFiniteLoss) as error:
            trainer.settle()
        named.append(error.value.step)
    trainer.settle()
    assert named == [1, 2, 3]


def test_an_optimizer_that_is_not_fused_cannot_leave_a_step_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "reading_is_free", False)
    trainer = trainer_of("mae", with_optimizer("mae", warmup_start=1.0, kind="adamw_bert"))
    break_step(trainer, 1, 2)
    with pytest.raises(NonFiniteLoss) as error:
        trainer.settle()
    assert (error.value.step, error.value.applied) == (1, True)


def test_a_gradient_that_overflows_in_fp16_is_no_broken_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "reading_is_free", False)
    trainer = trainer_of("mae", with_optimizer("mae", warmup_start=1.0), precision="fp16")
    hook = trainer.trainee.get_parameter("decoder.head.weight").register_hook(explode)
    trainer.take_step([batch_of(trainer)])
    hook.remove()
    trainer.take_step([batch_of(trainer)])
    trainer.settle()
    assert math.isfinite(trainer.latest.gradient_norm)


@pytest.mark.parametrize("method", ["mae", "byol"])
def test_every_part_of_a_step_is_told(method: str) -> None:
    told: list[str] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        told.append(name)
        yield

    config = tiny_config(method, Path("nowhere"), parts=2)
    trainer = Trainer(METHODS[method](config.settings), config.training, steps_per_epoch=4, device=CPU, phase=phase)
    trainer.train_step([batch_of(trainer, 4), batch_of(trainer, 4, first=4)])
    parts = ["views", "forward", "backward"] * 2
    assert told == ([*parts, "optimizer", "target"] if method == "mae" else ["target", *parts, "optimizer"])
    assert set(told) == set(PHASES)


def explode(gradient: Tensor) -> Tensor:
    return gradient * math.inf


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    trainer = trainer_of("mae", with_optimizer("mae", warmup_start=1.0))
    trainer.trainee.get_parameter("decoder.head.weight").register_hook(explode)
    before = weights(trainer)
    batch = replace(batch_of(trainer, 3), indices=torch.tensor([5, 2, 9]))
    with pytest.raises(NonFiniteLoss, match=r"the gradient's norm is (inf|nan) at step 0, samples 5, 2, 9;"):
        trainer.train_step([batch])
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name]), name


def test_with_fp16_a_gradient_that_overflows_only_lowers_the_scale() -> None:
    trainer = trainer_of("mae", with_optimizer("mae", warmup_start=1.0), precision="fp16")
    hook = trainer.trainee.get_parameter("decoder.head.weight").register_hook(explode)
    before, scale = weights(trainer), trainer.scaler.get_scale()
    trainer.train_step([batch_of(trainer)])
    assert trainer.step == 1
    assert trainer.scaler.get_scale() == scale / 2
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name]), name
    hook.remove()

    # The scale is part of the state.
    restored = trainer_of("mae", precision="fp16")
    restored.restore(trainer.state({}))
    assert restored.scaler.get_scale() == scale / 2
    assert math.isfinite(restored.train_step([batch_of(trainer)]).loss)
    assert any(not torch.equal(value, before[name]) for name, value in weights(restored).items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_near_full_precision(method: str, precision: Precision) -> None:
    full, half = trainer_of(method), trainer_of(method, precision=precision)
    expected, result = full.train_step([batch_of(full)]), half.train_step([batch_of(half)])
    assert result.losses.keys() == expected.losses.keys()
    # A negative cosine starts near zero.
    assert result.loss == pytest.approx(expected.loss, rel=0.03, abs=0.01)
    # iGPT's output table starts at zero, so its first loss is the same in any precision.
    assert (result.loss, result.gradient_norm) != (expected.loss, expected.gradient_norm)
    assert all(value.dtype in (torch.float32, torch.int64, torch.bool) for value in weights(half).values())


@pytest.mark.parametrize("method", METHODS)
def test_a_restored_trainer_takes_the_same_steps(method: str) -> None:
    settings = with_optimizer(method, lr=0.01, lr_batch=None)
    trainer = trainer_of(method, settings)
    for seed in range(2):
        trainer.train_step([batch_of(trainer, seed=seed)])
    state = trainer.state({"note": "kept"})
    saved = replace(state, tensors={name: value.clone() for name, value in state.tensors.items()})
    assert saved.values["note"] == "kept"
    expected = [trainer.train_step([batch_of(trainer, seed=seed)]) for seed in (2, 3)]

    torch.manual_seed(99)  # neither the start nor torch's own state may matter
    restored = Trainer(METHODS[method](settings), trainer.config, steps_per_epoch=4, device=CPU)
    restored.restore(saved)
    assert [restored.train_step([batch_of(trainer, seed=seed)]) for seed in (2, 3)] == expected
    for name, value in weights(trainer).items():
        assert torch.equal(value, weights(restored)[name]), name


def test_stochastic_depth_follows_the_batchs_seed_alone() -> None:
    settings = tiny_settings("simmim")
    settings = replace(settings, encoder=replace(settings.encoder, depth=4, drop_path=0.9))
    losses = []
    for state in (1, 2):
        trainer = trainer_of("simmim", settings)
        torch.manual_seed(state)
        losses.append([trainer.train_step([batch_of(trainer, seed=seed)]).loss for seed in (5, 6)])
    assert losses[0] == losses[1]
    still = trainer_of("simmim", replace(settings, encoder=replace(settings.encoder, drop_path=0.0)))
    assert still.train_step([batch_of(still, seed=5)]).loss != losses[0][0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs must be a number above 0, got 0"),
        ({"epochs": math.nan}, "epochs must be a number above 0, got nan"),
        ({"epochs": math.inf}, "epochs must be a number above 0, got inf"),
        ({"batch_size": 0}, "batch_size must be a number above 0, got 0"),
        ({"log_every": 0}, "log_every must be a number above 0, got 0"),
        ({"checkpoint_every": -1}, "checkpoint_every must be a number above 0, got -1"),
        ({"parts": 0}, "parts must be a number above 0, got 0"),
        ({"parts": 3}, "a batch of 8 cannot be cut into 3 equal parts"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
        ({"keep_every": -1}, "keep_every must be 0 or more, got -1"),
        ({"evaluate_every": -0.5}, "evaluate_every must be a number of 0 or more, got -0.5"),
        ({"evaluate_every": math.nan}, "evaluate_every must be a number of 0 or more, got nan"),
        ({"max_bad_share": 0}, "max_bad_share must lie in (0, 1], got 0"),
        ({"max_bad_share": 1.5}, "max_bad_share must lie in (0, 1], got 1.5"),
        ({"seed": -1}, "seed must be a whole number from 0 to 2^63 - 1, got -1"),
        ({"seed": 2**63}, f"seed must be a whole number from 0 to 2^63 - 1, got {2**63}"),
    ],
)
def test_training_that_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        TrainingConfig(**{"batch_size": 8, "workers": 0} | changes)


def test_devices_are_found_or_refused() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="unknown device 'gpu'; use auto, cpu, cuda, cuda:1 or mps"):
        choose_device("gpu")
    for absent in ("cuda:77", "meta"):
        with pytest.raises(ValueError, match=f"device '{absent}' is not available on this machine"):
            choose_device(absent)


def test_precision_is_plain_where_there_is_no_gpu() -> None:
    assert choose_precision("auto", CPU) is None
    assert choose_precision("fp32", CPU) is None
    assert choose_precision("bf16", CPU) is torch.bfloat16
    assert choose_precision("fp16", CPU) is torch.float16
