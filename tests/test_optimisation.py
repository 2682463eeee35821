"""AdamW's groups and the learning rate of every step."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unmask.optimisation import OptimizerConfig, build_adamw, parameter_groups


def _network() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    network[2].bias.requires_grad_(False)
    return network


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1


def test_groups_hold_every_trainable_parameter_once_with_its_name() -> None:
    network = _network()
    decayed, free = parameter_groups(network, _is_matrix, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert decayed["names"] == ["0.weight", "2.weight"]
    assert free["names"] == ["0.bias", "1.weight", "1.bias"]
    parameters = dict(network.named_parameters())
    for group in (decayed, free):
        named = zip(cast(list[str], group["names"]), cast(list[Tensor], group["params"]), strict=True)
        assert all(parameters[name] is parameter for name, parameter in named)


def test_empty_groups_are_left_out() -> None:
    (group,) = parameter_groups(_network(), lambda name, parameter: True, 0.1)
    assert group["weight_decay"] == 0.1
    assert parameter_groups(_network().requires_grad_(False), _is_matrix, 0.1) == []


def test_adamw_decays_what_the_method_decays_and_nothing_else() -> None:
    network = _network()
    config = OptimizerConfig(weight_decay=0.5, betas=(0.8, 0.9), eps=1e-6)
    optimizer = build_adamw(network, _is_matrix, config)
    assert isinstance(optimizer, torch.optim.AdamW)
    before = {name: value.clone() for name, value in network.named_parameters()}
    for group in optimizer.param_groups:
        assert group["lr"] == 0.0
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)
        group["lr"] = 0.1
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, value in network.named_parameters():
        factor = 1 - 0.1 * 0.5 if value.ndim > 1 else 1.0
        torch.testing.assert_close(value.data, factor * before[name])


def test_the_fused_step_is_adamws_formula() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    module = nn.ParameterDict({"weight": parameter})
    optimizer = build_adamw(module, lambda name, value: True, OptimizerConfig(weight_decay=0.1, betas=(0.9, 0.99)))
    expected, first, second = parameter.data.clone(), torch.zeros(2).double(), torch.zeros(2).double()
    for step in range(1, 4):
        optimizer.param_groups[0]["lr"] = 0.01 * step
        gradient = torch.tensor([0.3, -0.1]).double() * step
        parameter.grad = gradient.clone()
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        corrected = (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
        expected = expected * (1 - 0.01 * step * 0.1) - 0.01 * step * corrected
        torch.testing.assert_close(parameter.data, expected, rtol=1e-12, atol=1e-12)


def test_the_rate_scales_with_the_batch_unless_absolute() -> None:
    assert OptimizerConfig(lr=1.5e-4, lr_batch=256).peak(4096) == pytest.approx(2.4e-3)
    assert OptimizerConfig(lr=1e-4, lr_batch=512).peak(256) == pytest.approx(5e-5)
    assert OptimizerConfig(lr=5e-4, lr_batch=None).peak(4096) == 5e-4


def test_warm_up_then_cosine_to_the_smallest_rate() -> None:
    config = OptimizerConfig(lr=1.0, lr_batch=None, warmup_epochs=10, warmup_start=0.1, min_lr=0.2)

    def at(epoch: float) -> float:
        return config.at(epoch / 100, batch_size=8, epochs=100)

    assert at(0) == pytest.approx(0.1)
    assert at(5) == pytest.approx(0.55)
    assert at(10) == pytest.approx(1.0)
    assert at(55) == pytest.approx(0.6)
    assert at(100) == pytest.approx(0.2)


def test_a_short_run_warms_up_for_a_fifth_of_itself() -> None:
    config = OptimizerConfig(lr=1.0, lr_batch=None, warmup_epochs=40)
    rates = [config.at(step / 10, batch_size=8, epochs=5) for step in range(11)]
    assert rates[:3] == pytest.approx([0, 0.5, 1.0])
    assert rates[-1] == pytest.approx(0)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_the_step_decay_is_simmims() -> None:
    config = OptimizerConfig(lr=1.0, lr_batch=None, warmup_epochs=10, decay="step", step_at=700 / 800)

    def at(epoch: float) -> float:
        return config.at(epoch / 800, batch_size=8, epochs=800)

    assert at(5) == pytest.approx(0.5)
    assert at(10) == at(400) == at(699.9) == 1.0
    assert at(700) == at(800) == pytest.approx(0.1)


def test_a_peak_below_the_smallest_rate_stays() -> None:
    config = OptimizerConfig(lr=1e-6, lr_batch=None, warmup_epochs=0, min_lr=1e-5)
    assert config.at(1.0, batch_size=8, epochs=10) == 1e-6


@settings(max_examples=40, deadline=None)
@given(
    progress=st.floats(0, 1),
    epochs=st.floats(0.01, 2000),
    warmup=st.floats(0, 100),
    batch=st.integers(1, 10_000),
    decay=st.sampled_from(["cosine", "step"]),
)
def test_the_rate_lies_between_zero_and_the_peak(
    progress: float, epochs: float, warmup: float, batch: int, decay: Any
) -> None:
    config = OptimizerConfig(warmup_epochs=warmup, decay=decay)
    rate = config.at(progress, batch_size=batch, epochs=epochs)
    assert 0 <= rate <= config.peak(batch) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lr": -1e-3}, r"^lr must be 0 or more, got -0\.001$"),
        ({"min_lr": -1.0}, r"^min_lr must be 0 or more, got -1\.0$"),
        ({"weight_decay": -0.1}, r"^weight_decay must be 0 or more, got -0\.1$"),
        ({"warmup_epochs": -1.0}, r"^warmup_epochs must be 0 or more, got -1\.0$"),
        ({"lr_batch": 0}, r"^lr_batch must be above 0, got 0$"),
        ({"clip": 0.0}, r"^clip must be above 0, got 0\.0$"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        OptimizerConfig(**changes)
