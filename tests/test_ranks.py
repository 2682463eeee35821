"""What ranks tell each other: two processes, one step of each operation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from forked_ranks import as_ranks
from unmask.ranks import (
    any_rank,
    from_all_ranks,
    gather_with_gradient,
    gather_without_gradient,
    mean_over_ranks,
    parts_of_rank,
    rank,
    share_of_mean,
    shared_sum,
    sum_over_ranks,
    world_size,
)

ROWS = torch.arange(10, dtype=torch.float64).reshape(5, 2)


def own(number: int) -> Tensor:
    """This rank's rows: 2 of the first rank, 3 of the second one."""
    return ROWS[:2] if number == 0 else ROWS[2:]


def work(number: int, folder: Path) -> None:
    assert (rank(), world_size()) == (number, 2)
    assert [any_rank(flag) for flag in (False, number == 1, True)] == [False, True, True]
    assert from_all_ranks({"rank": number}) == [{"rank": 0}, {"rank": 1}]
    assert parts_of_rank(6) == range(3 * number, 3 * number + 3)
    with pytest.raises(ValueError, match="have 3 parts, which 2 devices cannot share equally"):
        parts_of_rank(3)
    rows = own(number)
    assert torch.equal(sum_over_ranks(rows.sum()), ROWS.sum())
    assert torch.equal(mean_over_ranks(rows.sum()), ROWS.sum() / 2)
    equal = ROWS[:2] + 100 * number
    gathered, offset = gather_without_gradient(equal)
    assert offset == 2 * number
    assert torch.equal(gathered, torch.cat([ROWS[:2], ROWS[:2] + 100]))
    variable = equal.clone().requires_grad_()
    gathered, offset = gather_with_gradient(variable)
    assert torch.equal(gathered, torch.cat([ROWS[:2], ROWS[:2] + 100]))
    # Rank r weighs what it has gathered by r + 1: each row gets the weights of both ranks' losses.
    (gathered.pow(2) * (number + 1)).sum().backward()
    weighed = rows.clone().requires_grad_()
    shared_sum(weighed.pow(3).sum()).mul(number + 1).backward()
    mean = share_of_mean(rows.mean(), len(rows))
    assert variable.grad is not None
    assert weighed.grad is not None
    save_file({"gathered": variable.grad, "summed": weighed.grad, "mean": mean}, folder / f"{number}.safetensors")


def test_two_ranks(tmp_path: Path) -> None:
    as_ranks(2, work, tmp_path)
    found = [load_file(tmp_path / f"{number}.safetensors") for number in range(2)]
    for number, tensors in enumerate(found):
        torch.testing.assert_close(tensors["gathered"], 2 * (ROWS[:2] + 100 * number) * 3)
        torch.testing.assert_close(tensors["summed"], 3 * own(number).pow(2) * 3)
    torch.testing.assert_close((found[0]["mean"] + found[1]["mean"]) / 2, ROWS.mean())


def test_alone_everything_is_the_plain_thing() -> None:
    rows = ROWS.clone().requires_grad_()
    assert (rank(), world_size()) == (0, 1)
    assert shared_sum(rows) is rows
    assert mean_over_ranks(rows) is rows
    assert sum_over_ranks(rows) is rows
    assert gather_with_gradient(rows) == (rows, 0)
    gathered, offset = gather_without_gradient(rows)
    assert (gathered.requires_grad, offset) == (False, 0)
    assert share_of_mean(rows, 3) is rows
    assert not any_rank(False)
    assert from_all_ranks("a") == ["a"]
    assert parts_of_rank(3) == range(3)
