"""RandAugment on our crops is timm's, drawn from our generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import auto_augment, create_transform
from torch import Tensor

from unmask.data.randaugment import RandAugment

POLICY = "rand-m9-mstd0.5-inc1"


def picture(channels: int, seed: int = 0, height: int = 24, width: int = 32) -> Tensor:
    """A smooth picture: noise would hide what a shift or an interpolation does."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)[:channels].contiguous()


def timms(policy: str, mean: tuple[float, ...]) -> Any:
    """RandAugment as timm puts it among its transforms for fine-tuning by BEiT's and MAE's code."""
    pipeline = create_transform(
        (3, 24, 32), is_training=True, auto_augment=policy, interpolation="bicubic", mean=mean, std=(0.5, 0.5, 0.5)
    )
    (found,) = (part for part in pipeline.transforms if isinstance(part, auto_augment.RandAugment))
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**40),
    st.sampled_from([POLICY, "rand-m5-n3", "rand-m9-mstd101-inc1-p0.9", "rand-m7-tweights-n1", "rand-mmax15-m12-n4"]),
)
def test_it_is_timms_under_the_same_seeds(seed: int, policy: str) -> None:
    image, mean = picture(3, seed % 97), (0.5, 0.25, 0.75)
    drawn = int(np.random.default_rng(seed).integers(2**63))
    before = random.getstate(), np.random.get_state()
    random.seed(drawn)
    np.random.seed(drawn % 2**32)
    try:
        expected = timms(policy, mean)(Image.fromarray(image.permute(1, 2, 0).numpy()))
    except ValueError:
        assume(False)  # posterize to no bits at all, see below
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    ours = RandAugment(policy, (128, 64, 191))(image, np.random.default_rng(seed))
    assert torch.equal(ours, torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_a_generator_decides_and_nothing_else() -> None:
    augment, image = RandAugment(POLICY, (1, 2, 3)), picture(3)
    random.seed(0), np.random.seed(0)
    first = [augment(image, np.random.default_rng(number)) for number in range(12)]
    other = RandAugment(POLICY, (1, 2, 3))
    random.seed(1), np.random.seed(1)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    again = [other(image, np.random.default_rng(number)) for number in range(12)]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert len({tuple(one.flatten().tolist()) for one in first}) > 6
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])
    assert torch.equal(image, picture(3)), "what comes in is left as it is"
    # One generator gives another picture at every call.
    generator = np.random.default_rng(3)
    assert len({tuple(augment(image, generator).flatten().tolist()) for _ in range(8)}) > 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 255))
def test_grey_stays_one_channel_and_grey(seed: int, fill: int) -> None:
    grey = picture(1, seed % 97)
    one = RandAugment("rand-m10-n4-p1-inc1", (fill,))(grey, np.random.default_rng(seed))
    assert one.shape == grey.shape
    assert one.dtype == torch.uint8
    three = RandAugment("rand-m10-n4-p1-inc1", (fill,) * 3)(grey.repeat(3, 1, 1), np.random.default_rng(seed))
    assert torch.equal(three, one.expand(3, -1, -1)), "as the same picture in three equal channels"


def test_what_a_turn_leaves_empty_has_the_colour_asked_for() -> None:
    turn = RandAugment("rand-m10-n1-p1-inc1", (10, 20, 30))
    turn._transform.ops = [op for op in turn._transform.ops if op.name == "Rotate"]
    turned = turn(torch.full((3, 32, 32), 200, dtype=torch.uint8), np.random.default_rng(0))
    assert turned[:, 0, 0].tolist() == [10, 20, 30]
    grey = RandAugment("rand-m10-n1-p1-inc1", (40,))
    grey._transform.ops = [op for op in grey._transform.ops if op.name == "Rotate"]
    assert grey(torch.full((1, 32, 32), 200, dtype=torch.uint8), np.random.default_rng(0))[0, 0, 0] == 40


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**40),
    st.sampled_from([2, 4, 5, 13]),
    st.sampled_from(["rand-m10-n4-p1-inc1", "rand-m7-tweights-n3-p1", "rand-m9-t3a-n3-p1", "rand-m9-n4-p1"]),
)
def test_many_equal_channels_are_changed_as_one(seed: int, channels: int, policy: str) -> None:
    grey = picture(1, seed % 97)
    one = RandAugment(policy, (70,))(grey, np.random.default_rng(seed))
    many = RandAugment(policy, (70,) * channels)(grey.repeat(channels, 1, 1), np.random.default_rng(seed))
    assert many.dtype == torch.uint8
    assert torch.equal(many, one.expand(channels, -1, -1))


@pytest.mark.parametrize("name", ["Color", "Contrast", "Desaturate"])
def test_operations_on_all_channels_are_around_their_mean(name: str) -> None:
    image = torch.randint(256, (5, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augment = RandAugment("rand-m5-n1-p1-t3a" if name == "Desaturate" else "rand-m3-n1-p1", (1, 2, 3, 4, 5))
    augment._transform.ops = [op for op in augment._transform.ops if op.name == name]
    (operation,) = augment._transform.ops
    (factor,) = operation.level_fn(operation.magnitude, operation.hparams)
    other = image.double().mean(dim=None if name == "Contrast" else 0).expand(image.shape)
    weight = 1 - factor if name == "Desaturate" else factor
    expected = (weight * image + (1 - weight) * other).clamp(0, 255)
    assert 0.05 < weight < 0.95
    changed = augment(image, np.random.default_rng(0)).double()
    assert (changed - expected).abs().max() < 1.6, "of 255: the mean and the mixture are both rounded"


def test_each_of_many_channels_has_its_colour_of_what_a_turn_leaves_empty() -> None:
    turn = RandAugment("rand-m10-n1-p1-inc1", (10, 20, 30, 40, 50))
    turn._transform.ops = [op for op in turn._transform.ops if op.name == "Rotate"]
    turned = turn(torch.full((5, 32, 32), 200, dtype=torch.uint8), np.random.default_rng(0))
    assert turned[:, 0, 0].tolist() == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(("policy", "bits"), [("rand-m10-n1-p1-inc1", 0), ("rand-m0-n1-p1", 0), ("rand-m9-n1-p1", 3)])
def test_no_bits_at_all_are_black(policy: str, bits: int) -> None:
    strongest, image = RandAugment(policy, (9, 9, 9)), picture(3)
    strongest._transform.ops = [op for op in strongest._transform.ops if op.name.startswith("Posterize")]
    (operation,) = strongest._transform.ops
    assert operation.level_fn(operation.magnitude, operation.hparams)[0] == bits
    expected = torch.zeros_like(image) if bits == 0 else image & 0b11100000
    assert torch.equal(strongest(image, np.random.default_rng(0)), expected)


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "m9",
        "augmix-m3",
        "original-mstd0.5",
        "rand-",
        "rand-m",
        "rand-mild",
        "rand-9",
        "rand-m9.5",
        "rand-x3",
        "rand-m9-mstdlarge",
        "rand-m9_mstd0.5",
        "rand-tnone",
        "rand-m9-inc2",
    ],
)
def test_what_timm_cannot_read_is_refused(policy: str) -> None:
    with pytest.raises(ValueError, match="RandAugment policy") as caught:
        RandAugment(policy, (0, 0, 0))
    assert str(caught.value) == (f"timm knows no RandAugment policy {policy!r}; an example is rand-m9-mstd0.5-inc1")
