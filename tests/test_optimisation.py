"""AdamW's groups and the learning rate of every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unmask.optimisation import (
    OptimizerConfig,
    ParameterRule,
    build_optimizer,
    finish_gradients,
    follow_schedule,
    set_rates,
)


def _network() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    network[2].bias.requires_grad_(False)
    return network


def _is_matrix(name: str, parameter: Tensor) -> ParameterRule:
    return ParameterRule(decay=parameter.ndim > 1)


def test_groups_hold_every_trainable_parameter_once_with_its_name() -> None:
    network = _network()
    decayed, free = build_optimizer(network, _is_matrix, OptimizerConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert decayed["names"] == ["0.weight", "2.weight"]
    assert free["names"] == ["0.bias", "1.weight", "1.bias"]
    parameters = dict(network.named_parameters())
    for group in (decayed, free):
        named = zip(cast(list[str], group["names"]), cast(list[Tensor], group["params"]), strict=True)
        assert all(parameters[name] is parameter for name, parameter in named)


def test_the_schedule_is_followed() -> None:
    config = OptimizerConfig(lr=0.1, lr_batch=64, weight_decay=0.2, weight_decay_end=0.4, warmup_epochs=1.0)
    optimizer = build_optimizer(_network(), _is_matrix, config)
    for progress in (0.0, 0.05, 0.6):
        rate = follow_schedule(optimizer, config, progress, batch_size=32, epochs=10)
        assert rate == config.at(progress, batch_size=32, epochs=10)
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]
        assert [group["weight_decay"] for group in optimizer.param_groups] == [config.weight_decay_at(progress), 0.0]


def test_others_can_save_the_state_and_load_it_without_unpickling_code(tmp_path: Path) -> None:
    optimizer = build_optimizer(_network(), _is_matrix, OptimizerConfig())
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again = build_optimizer(_network(), _is_matrix, OptimizerConfig())
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert again.state_dict() == optimizer.state_dict()
    set_rates(again, rate=0.5, peak=0.5, weight_decay=0.1)
    assert [group["weight_decay"] for group in again.param_groups] == [0.1, 0.0]


def test_parameters_of_one_rule_are_one_group() -> None:
    (group,) = build_optimizer(
        _network(), lambda name, parameter: ParameterRule(decay=True), OptimizerConfig()
    ).param_groups
    assert group["weight_decay"] == 0.05


def test_rates_follow_the_rules() -> None:
    def rule(name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(
            decay=parameter.ndim > 1, lr_scale=5.0 if name == "0.weight" else 1.0, constant_lr=name == "1.bias"
        )

    optimizer = build_optimizer(_network(), rule, OptimizerConfig())
    set_rates(optimizer, rate=0.1, peak=0.3, weight_decay=0.7)
    found = {name: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for name in group["names"]}
    assert found == {
        "0.weight": (0.5, 0.7),
        "0.bias": (0.1, 0.0),
        "1.weight": (0.1, 0.0),
        "1.bias": (0.3, 0.0),
        "2.weight": (0.1, 0.7),
    }


def _with_gradients(config: OptimizerConfig, rule: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return network, build_optimizer(network, rule, config)


def test_gradients_are_clipped_together_each_alone_or_not_at_all() -> None:
    def plain(name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=True, clip=name != "1.bias")

    for clip, each in ((None, False), (0.5, False), (0.5, True)):
        config = OptimizerConfig(clip=clip, clip_each=each)
        network, optimizer = _with_gradients(config, plain)
        before = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
        total = torch.cat([value.flatten() for value in before.values()]).norm()
        counted = torch.cat([value.flatten() for name, value in before.items() if name != "1.bias"]).norm()
        torch.testing.assert_close(finish_gradients(optimizer, config, 0.0), total)
        for name, value in network.named_parameters():
            norm = before[name].norm() if each else counted
            factor = 1.0 if clip is None or name == "1.bias" else min(1.0, clip / (float(norm) + 1e-6))
            assert value.grad is not None
            torch.testing.assert_close(value.grad, before[name] * factor)


def test_held_back_parameters_do_not_move_and_do_not_decay() -> None:
    def rule(name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=True, frozen_until=0.5 if name == "1.weight" else 0.0)

    for progress, moves in ((0.0, False), (0.49, False), (0.5, True)):
        network, optimizer = _with_gradients(OptimizerConfig(), rule)
        before = {name: value.detach().clone() for name, value in network.named_parameters()}
        set_rates(optimizer, rate=0.1, peak=0.1, weight_decay=0.5)
        finish_gradients(optimizer, OptimizerConfig(), progress)
        optimizer.step()
        for name, value in network.named_parameters():
            assert torch.equal(value, before[name]) is (name == "1.weight" and not moves)


def test_sgd_is_torchs() -> None:
    _, optimizer = _with_gradients(
        OptimizerConfig(kind="sgd", sgd_momentum=0.7), lambda name, value: ParameterRule(decay=True)
    )
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.7


def test_weight_decay_follows_a_cosine_where_it_has_an_end() -> None:
    assert OptimizerConfig(weight_decay=0.04).weight_decay_at(0.7) == 0.04
    config = OptimizerConfig(weight_decay=0.04, weight_decay_end=0.4)
    assert [config.weight_decay_at(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.04, 0.22, 0.4])


def test_adamw_decays_what_the_method_decays_and_nothing_else() -> None:
    network = _network()
    config = OptimizerConfig(weight_decay=0.5, betas=(0.8, 0.9), eps=1e-6)
    optimizer = build_optimizer(network, _is_matrix, config)
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
    optimizer = build_optimizer(
        module, lambda name, value: ParameterRule(decay=True), OptimizerConfig(weight_decay=0.1, betas=(0.9, 0.99))
    )
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
