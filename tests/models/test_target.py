"""Target networks: frozen copies, and what the moving average moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from torch import nn

from unmask.models.target import ema_update_, frozen_copy, stop_dropping_


class Network(nn.Module):
    """A linear layer and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.batch_norm = nn.BatchNorm1d(3)


class WithNorm(Network):
    """The same with another norm, registered first, so that order does not match."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.norm = nn.LayerNorm(3)
        self.linear = nn.Linear(4, 3)
        self.batch_norm = nn.BatchNorm1d(3)


def test_a_frozen_copy_is_equal_apart_and_without_gradient() -> None:
    online = Network().train()
    target = frozen_copy(online)
    assert target.training
    for mine, theirs in zip(target.parameters(), online.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
        assert not mine.requires_grad
        assert theirs.requires_grad


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.integers(0, 100))
def test_every_parameter_moves_by_the_share_that_momentum_leaves(momentum: float, seed: int) -> None:
    torch.manual_seed(seed)
    online, target = Network().double(), frozen_copy(Network().double())
    expected = {
        name: momentum * parameter + (1 - momentum) * dict(online.named_parameters())[name]
        for name, parameter in target.named_parameters()
    }
    ema_update_(target, online, momentum)
    for name, parameter in target.named_parameters():
        torch.testing.assert_close(parameter, expected[name].detach(), rtol=1e-12, atol=1e-12, check_dtype=True)
        assert not parameter.requires_grad


def test_momentum_one_changes_no_bit_and_zero_copies() -> None:
    online, target = Network(), frozen_copy(Network())
    before = [parameter.clone() for parameter in target.parameters()]
    ema_update_(target, online, 1.0)
    assert all(torch.equal(old, new) for old, new in zip(before, target.parameters(), strict=True))
    ema_update_(target, online, 0.0)
    assert all(torch.equal(mine, new) for mine, new in zip(online.parameters(), target.parameters(), strict=True))


def test_buffers_are_left_alone_and_the_online_network_too() -> None:
    online, target = Network(), frozen_copy(Network())
    online.batch_norm(torch.randn(8, 3) + 3)
    state = {name: value.clone() for name, value in online.state_dict().items()}
    buffers = {name: value.clone() for name, value in target.named_buffers()}
    ema_update_(target, online, 0.5)
    assert all(torch.equal(value, buffers[name]) for name, value in target.named_buffers())
    assert all(torch.equal(value, state[name]) for name, value in online.state_dict().items())


def test_parameters_are_matched_by_name_and_what_only_the_online_network_has_is_skipped() -> None:
    online, target = WithNorm(), frozen_copy(Network())
    ema_update_(target, online, 0.0)
    assert torch.equal(target.linear.weight, online.linear.weight)
    assert torch.equal(target.batch_norm.bias, online.batch_norm.bias)


def test_a_parameter_that_only_the_target_has_is_our_error() -> None:
    with pytest.raises(AssertionError, match=r"^target parameter norm\.weight has no online twin$"):
        ema_update_(frozen_copy(WithNorm()), Network(), 0.5)


def test_fixed_parameters_never_move() -> None:
    online, target = Network(), frozen_copy(Network())
    online.linear.bias.requires_grad_(False)
    before = target.linear.bias.clone()
    ema_update_(target, online, 0.3)
    assert torch.equal(target.linear.bias, before)
    ema_update_(target, online.requires_grad_(False), 0.0)
    assert not torch.equal(target.linear.weight, online.linear.weight)


def test_stopped_paths_drop_nothing_in_train_mode_and_others_go_on() -> None:
    blocks = nn.Sequential(DropPath(0.5), nn.Identity(), DropPath(0.9)).train()
    stopped = stop_dropping_(frozen_copy(blocks))
    assert stopped.training
    ones = torch.ones(64, 2)
    assert torch.equal(stopped(ones), ones)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(blocks(ones), ones)
