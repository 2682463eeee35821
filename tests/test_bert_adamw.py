"""BERT's AdamW against a plain loop, and how it is built, stopped and resumed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from unmask.optimisation import OptimizerConfig, ParameterRule, build_optimizer, set_rates
from unmask.training.checkpoint import load_optimizer_tensors, optimizer_tensors

CONFIG = OptimizerConfig(kind="adamw_bert", lr=0.01, lr_batch=None, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)


def _rule(name: str, parameter: torch.Tensor) -> ParameterRule:
    return ParameterRule(decay=name.endswith("weight"), lr_scale=5.0 if name.endswith("bias") else 1.0)


def _layer() -> nn.Linear:
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).view(2, 3) - 2)
        layer.bias.copy_(torch.tensor([0.5, -0.5]))
    return layer


def _gradients(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    return rng.normal(size=(2, 3)), rng.normal(size=2) * 1e-3


def _train(layer: nn.Linear, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_rates(optimizer, rate=0.01 * (step + 1), peak=0.05, weight_decay=0.1)
        for parameter, gradient in zip((layer.weight, layer.bias), _gradients(step), strict=True):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()


def test_steps_are_those_of_a_plain_loop() -> None:
    layer = _layer()
    _train(layer, build_optimizer(layer, _rule, CONFIG), range(5))
    for index, (start, found, scale, decay) in enumerate(
        [(_layer().weight, layer.weight, 1.0, 0.1), (_layer().bias, layer.bias, 5.0, 0.0)]
    ):
        value = start.detach().numpy().copy()
        first, second = np.zeros_like(value), np.zeros_like(value)
        for step in range(5):
            gradient, rate = _gradients(step)[index], 0.01 * (step + 1) * scale
            for place in np.ndindex(value.shape):
                first[place] = 0.8 * first[place] + 0.2 * gradient[place]
                second[place] = 0.95 * second[place] + 0.05 * gradient[place] ** 2
                size = rate * math.sqrt(1 - 0.95 ** (step + 1)) / (1 - 0.8 ** (step + 1))
                value[place] -= size * first[place] / (math.sqrt(second[place]) + 1e-3)
                value[place] -= rate * decay * value[place]
        np.testing.assert_allclose(found.detach().numpy(), value, rtol=1e-12, atol=1e-14)


def test_a_resumed_optimizer_goes_on_as_if_nothing_had_happened() -> None:
    whole, halves = _layer(), _layer()
    _train(whole, build_optimizer(whole, _rule, CONFIG), range(4))
    before = build_optimizer(halves, _rule, CONFIG)
    _train(halves, before, range(2))
    saved = {name: value.clone() for name, value in optimizer_tensors(before).items()}
    assert set(saved) == {
        f"optimizer.{name}.{what}" for name in ("weight", "bias") for what in ("step", "exp_avg", "exp_avg_sq")
    }
    after = build_optimizer(halves, _rule, CONFIG)
    load_optimizer_tensors(after, saved)
    _train(halves, after, range(2, 4))
    assert torch.equal(whole.weight, halves.weight)
    assert torch.equal(whole.bias, halves.bias)


def test_a_parameter_without_gradient_stays_and_counts_no_step() -> None:
    layer = _layer()
    optimizer = build_optimizer(layer, _rule, CONFIG)
    set_rates(optimizer, rate=0.1, peak=0.1, weight_decay=0.1)
    layer.bias.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(layer.weight, _layer().weight)
    assert layer.weight not in optimizer.state
    assert not torch.equal(layer.bias, _layer().bias)


def test_the_rate_falls_in_a_straight_line_after_warm_up() -> None:
    config = OptimizerConfig(lr=1.0, lr_batch=None, warmup_epochs=10, decay="linear")
    rates = [config.at(progress, batch_size=8, epochs=100) for progress in (0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.5, 1.0, 0.5, 0.0])
