"""timm's LARS, as it is configured here, takes the steps of the formula that MAE's probe uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unmask.evaluation.lars import build_lars


def _formula_step(
    parameter: Tensor, gradient: Tensor, velocity: Tensor, *, lr: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """One LARS step written down by hand: parameter and velocity after it."""
    if parameter.ndim > 1 and parameter.norm() > 0 and gradient.norm() > 0:
        gradient = gradient * 0.001 * parameter.norm() / gradient.norm()
    velocity = momentum * velocity + gradient
    return parameter - lr * velocity, velocity


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("initial", ["random", "zero"])
def test_steps_are_those_of_the_formula(momentum: float, initial: str) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.utils.skip_init(nn.Linear, 5, 3, dtype=torch.float64)
    for parameter in layer.parameters():
        if initial == "zero":
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, generator=generator)
    optimizer = build_lars(layer.parameters(), lr=0.0, momentum=momentum)
    expected = [parameter.detach().clone() for parameter in layer.parameters()]
    velocities = [torch.zeros_like(parameter) for parameter in expected]
    for step in range(6):
        lr = 2.0 / (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for i, parameter in enumerate(layer.parameters()):
            # A gradient of zero at one step: momentum alone moves the weights then.
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * (step != 3)
            parameter.grad = gradient
            expected[i], velocities[i] = _formula_step(expected[i], gradient, velocities[i], lr=lr, momentum=momentum)
        optimizer.step()
        for parameter, wanted in zip(layer.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-12, atol=1e-14)


def test_a_matrix_takes_the_same_step_however_large_its_gradient() -> None:
    def after(scale: float) -> Tensor:
        weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
        weight.grad = scale * torch.arange(6, dtype=torch.float64).reshape(2, 3)
        build_lars([weight], lr=1.0).step()
        return weight.detach()

    torch.testing.assert_close(after(1.0), after(1000.0))
    assert (after(1.0) - 1).norm().item() == pytest.approx(0.001 * 6**0.5)


def test_vectors_alone_take_plain_steps() -> None:
    bias = nn.Parameter(torch.zeros(3))
    bias.grad = torch.ones(3)
    build_lars([bias], lr=0.5).step()
    assert bias.tolist() == [-0.5] * 3
