"""Masks: how many patches, which shapes, how likely, and from which source of randomness."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.masking import (
    MaskConfig,
    VaryingMaskConfig,
    blockwise_mask,
    disjoint_masks,
    fill_mask,
    hidden_indices,
    masked_count,
    random_mask,
    sample_mask,
    take_hidden,
    varying_mask,
    visible_indices,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    unit=st.integers(1, 3),
    ratio=st.floats(0.01, 0.99),
    batch=st.integers(1, 4),
)
@settings(max_examples=80, deadline=None)
def test_random_masks_hide_exactly_the_promised_whole_units(rows, columns, unit, ratio, batch):
    units = rows * columns
    hidden = math.ceil(units * ratio - 1e-9)
    grid = (rows * unit, columns * unit)
    config = MaskConfig(kind="random", ratio=ratio, unit=unit)
    if hidden == units:
        with pytest.raises(ValueError, match="at least one must be hidden and one visible"):
            sample_mask(config, batch, grid, generator=_generator(), device="cpu")
        return
    mask_BN = sample_mask(config, batch, grid, generator=_generator(), device="cpu")
    assert mask_BN.shape == (batch, grid[0] * grid[1])
    assert mask_BN.dtype == torch.bool
    assert mask_BN.sum(1).tolist() == [hidden * unit**2] * batch
    assert masked_count(config, grid) == hidden * unit**2
    whole = mask_BN.view(batch, rows, unit, columns, unit).float().mean(dim=(2, 4))
    assert ((whole == 0) | (whole == 1)).all()


@pytest.mark.parametrize(
    ("ratio", "unit", "hidden"),
    [(0.75, 2, 148), (0.6, 2, 120), (0.65, 2, 128), (0.75, 1, 147), (0.15, 1, 30)],
    ids=["conmim", "simmim", "cmae", "mae", "msn"],
)
def test_the_authors_counts_on_a_grid_of_14(ratio, unit, hidden):
    assert masked_count(MaskConfig(ratio=ratio, unit=unit), (14, 14)) == hidden


def test_the_count_is_blind_to_rounding_of_the_product():
    assert 100 * 0.07 > 7  # the product that would give one patch too many
    assert 100 * 0.55 > 55
    assert masked_count(MaskConfig(ratio=0.07), (10, 10)) == 7
    assert masked_count(MaskConfig(ratio=0.55), (10, 10)) == 55


def test_random_masks_are_uniform_over_patches():
    draws, grid, ratio = 3000, (4, 6), 0.5
    mask_BN = random_mask(draws, grid, ratio, generator=_generator(), device="cpu")
    counts_N = mask_BN.sum(0).double()
    chi_square = ((counts_N - draws * ratio) ** 2 / (draws * ratio * (1 - ratio))).sum().item()
    assert chi_square < 60  # about 24 expected; above 60 once in 10 000


def _reference_block_mask(rows, columns, target, generator):
    """BEiT's algorithm as it is usually told: one sample, one proposal at a time."""

    def uniform(low, high):
        return low + (high - low) * torch.rand((), generator=generator).item()

    hidden = set()
    while len(hidden) < target:
        room = target - len(hidden)
        for _ in range(10):
            area, aspect = uniform(16, room), math.exp(uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top = int(torch.randint(rows - height + 1, (), generator=generator))
            left = int(torch.randint(columns - width + 1, (), generator=generator))
            box = {(r, c) for r in range(top, top + height) for c in range(left, left + width)}
            if 0 < len(box - hidden) <= room:
                hidden |= box
                break
        else:
            break
    return hidden


def test_blockwise_masks_have_the_measured_distribution():
    mask_BN = blockwise_mask(3000, (14, 14), 75, generator=_generator(), device="cpu")
    count_B = mask_BN.sum(1).double()
    assert 60 <= count_B.min() <= 70
    assert count_B.max() == 75
    assert 74.3 < count_B.mean() < 74.7


def test_blockwise_masks_agree_with_the_algorithm_told_one_proposal_at_a_time():
    samples = 500
    expected_NN = torch.zeros(14, 14, dtype=torch.double)
    expected_count, expected_edges = [], []
    generator = _generator(1)
    for _ in range(samples):
        hidden = _reference_block_mask(14, 14, 75, generator)
        expected_count.append(len(hidden))
        expected_edges.append(sum((r, c + 1) not in hidden for r, c in hidden))
        for r, c in hidden:
            expected_NN[r, c] += 1 / samples
    mask_BHW = blockwise_mask(4 * samples, (14, 14), 75, generator=_generator(2), device="cpu").view(-1, 14, 14)
    right_BHW = torch.nn.functional.pad(mask_BHW[:, :, 1:], (0, 1))
    edges_B = (mask_BHW & ~right_BHW).sum(dim=(1, 2)).double()
    assert mask_BHW.double().sum(dim=(1, 2)).mean() == pytest.approx(sum(expected_count) / samples, abs=0.15)
    assert edges_B.mean() == pytest.approx(sum(expected_edges) / samples, rel=0.03)  # as ragged as the original
    assert (mask_BHW.double().mean(0) - expected_NN).abs().max() < 0.12  # five standard errors of 500 samples
    assert (mask_BHW.double().mean(0) - expected_NN).abs().mean() < 0.03


@given(
    rows=st.integers(2, 9),
    columns=st.integers(2, 9),
    share=st.floats(0.01, 0.99),
    min_patches=st.integers(1, 30),
    exact=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_blockwise_masks_stay_within_the_target_on_any_grid(rows, columns, share, min_patches, exact, seed):
    target = min(max(1, round(share * rows * columns)), rows * columns - 1)
    mask_BN = blockwise_mask(
        5,
        (rows, columns),
        target,
        min_patches=min_patches,
        exact=exact,
        generator=_generator(seed),
        device="cpu",
    )
    count_B = mask_BN.sum(1)
    assert mask_BN.shape == (5, rows * columns)
    assert mask_BN.dtype == torch.bool
    assert count_B.min() >= 1
    assert count_B.max() <= target
    if exact:
        assert count_B.tolist() == [target] * 5


def test_exact_keeps_the_blocks_and_only_adds():
    loose_BN = blockwise_mask(200, (14, 14), 75, generator=_generator(5), device="cpu")
    exact_BN = blockwise_mask(200, (14, 14), 75, exact=True, generator=_generator(5), device="cpu")
    assert (loose_BN.sum(1) < 75).any()
    assert not (loose_BN & ~exact_BN).any()
    assert exact_BN.sum(1).tolist() == [75] * 200


@pytest.mark.parametrize(
    "config",
    [
        MaskConfig(ratio=0.75, unit=2),
        MaskConfig(kind="blockwise", ratio=0.38),
        MaskConfig(kind="blockwise", ratio=0.38, exact=True),
        MaskConfig(kind="blockwise", ratio=0.75, exact=True, block_ratio=0.6, roll=3),
    ],
    ids=["random", "blockwise", "exact", "rolled"],
)
def test_masks_are_a_function_of_the_generator_alone(config):
    before = torch.get_rng_state()
    first_BN = sample_mask(config, 8, (14, 14), generator=_generator(3), device="cpu")
    again_BN = sample_mask(config, 8, (14, 14), generator=_generator(3), device="cpu")
    other_BN = sample_mask(config, 8, (14, 14), generator=_generator(4), device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first_BN, again_BN)
    assert not torch.equal(first_BN, other_BN)
    assert len({tuple(mask_N.tolist()) for mask_N in first_BN}) == 8


def test_without_a_generator_torchs_global_state_is_used():
    torch.manual_seed(7)
    first_BN = random_mask(2, (4, 4), 0.5, device="cpu")
    torch.manual_seed(7)
    assert torch.equal(random_mask(2, (4, 4), 0.5, device="cpu"), first_BN)


def test_counts_known_before_sampling():
    assert masked_count(MaskConfig(kind="blockwise", ratio=0.38), (14, 14)) is None
    assert masked_count(MaskConfig(kind="blockwise", ratio=0.38, exact=True), (14, 14)) == 75


@given(rows=st.integers(2, 8), columns=st.integers(2, 8), ratio=st.floats(0.05, 0.7), known=st.booleans())
@settings(max_examples=40, deadline=None)
def test_visible_indices_are_the_unmasked_patches_in_order(rows, columns, ratio, known):
    mask_BN = random_mask(3, (rows, columns), ratio, generator=_generator(), device="cpu")
    hidden = masked_count(MaskConfig(ratio=ratio), (rows, columns)) if known else None
    indices_BV = visible_indices(mask_BN, hidden=hidden)
    assert indices_BV.dtype == torch.int64
    for mask_N, indices_V in zip(mask_BN, indices_BV, strict=True):
        assert indices_V.tolist() == [n for n, gone in enumerate(mask_N.tolist()) if not gone]


def test_uneven_masks_cannot_be_dropped():
    mask_BN = torch.tensor([[True, False, False], [True, True, False]])
    with pytest.raises(ValueError, match="must hide equally many patches to drop them, got 1 to 2"):
        visible_indices(mask_BN)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ratio": 0.0}, "mask ratio must lie strictly between 0 and 1, got 0.0"),
        ({"ratio": 1.0}, "mask ratio must lie strictly between 0 and 1, got 1.0"),
        ({"ratio": math.nan}, "mask ratio must lie strictly between 0 and 1, got nan"),
        ({"unit": 0}, "mask unit must be at least 1 patch, got 0"),
        ({"kind": "blockwise", "unit": 2}, "mask unit applies to random masks only"),
        ({"min_block_patches": 0}, "min_block_patches must be at least 1, got 0"),
        ({"min_aspect": 0.0}, "min_aspect must lie above 0 and be at most 1, got 0.0"),
        ({"min_aspect": 1.5}, "min_aspect must lie above 0 and be at most 1, got 1.5"),
        ({"max_block_patches": 0}, "max_block_patches must be at least 1, got 0"),
        ({"kind": "blockwise", "block_ratio": 0.5}, "block_ratio applies to exact blockwise masks only"),
        ({"exact": True, "block_ratio": 0.5}, "block_ratio applies to exact blockwise masks only"),
        (
            {"kind": "blockwise", "exact": True, "ratio": 0.5, "block_ratio": 0.6},
            "block_ratio must lie above 0 and be at most the ratio 0.5, got 0.6",
        ),
        ({"roll": 3}, "roll must be 0 or more, and 0 without a block_ratio, got 3"),
        ({"roll": -1}, "roll must be 0 or more, and 0 without a block_ratio, got -1"),
    ],
)
def test_a_wrong_config_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        MaskConfig(**changes)


def test_impossible_grids_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="a grid of 7x6 patches does not divide into squares of 2x2 patches"):
        random_mask(1, (7, 6), 0.5, unit=2, device="cpu")
    with pytest.raises(ValueError, match="would hide 4 of 4 squares of patches"):
        random_mask(1, (2, 2), 0.9, device="cpu")
    with pytest.raises(ValueError, match="blockwise masks need a grid of at least 2x2 patches, got 1x9"):
        blockwise_mask(1, (1, 9), 4, device="cpu")
    with pytest.raises(ValueError, match="can hide 1 to 8 patches, not 9"):
        blockwise_mask(1, (3, 3), 9, device="cpu")


@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    ratio=st.floats(0.5, 0.95),
    count=st.integers(1, 9),
    batch=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_no_two_disjoint_masks_show_the_same_patch(rows, columns, ratio, count, batch):
    patches = rows * columns
    visible = patches - math.ceil(patches * ratio - 1e-9)
    if visible == 0 or visible == patches or count * visible > patches:
        with pytest.raises(ValueError, match=r"at least one must be hidden and one visible|do not fit"):
            disjoint_masks(batch, (rows, columns), ratio, count, device="cpu")
        return
    masks_BKN = disjoint_masks(batch, (rows, columns), ratio, count, generator=_generator(), device="cpu")
    assert masks_BKN.shape == (batch, count, patches)
    assert torch.equal((~masks_BKN).sum(dim=2), torch.full((batch, count), visible))
    assert int((~masks_BKN).sum(dim=1).max()) == 1


def test_disjoint_masks_show_every_patch_equally_often_and_follow_the_generator():
    masks_BKN = disjoint_masks(4000, (3, 4), 0.8, 5, generator=_generator(), device="cpu")
    assert (~masks_BKN).double().mean(dim=0) == pytest.approx(torch.full((5, 12), 2 / 12).double().numpy(), abs=0.03)
    assert torch.equal(masks_BKN, disjoint_masks(4000, (3, 4), 0.8, 5, generator=_generator(), device="cpu"))
    assert not torch.equal(masks_BKN, disjoint_masks(4000, (3, 4), 0.8, 5, generator=_generator(1), device="cpu"))


def test_disjoint_masks_that_cannot_be_are_refused_in_one_sentence():
    sentence = r"^6 masks that each show 3 patches do not fit into 16 patches without overlap$"
    with pytest.raises(ValueError, match=sentence):
        disjoint_masks(1, (4, 4), 0.8, 6, device="cpu")
    with pytest.raises(ValueError, match=r"^there must be at least 1 mask, got 0$"):
        disjoint_masks(1, (4, 4), 0.8, 0, device="cpu")


@given(
    patches=st.integers(2, 30),
    share=st.floats(0, 1),
    hidden_share=st.floats(0, 1),
    roll=st.integers(0, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_filled_masks_have_their_count_and_show_the_same_number_of_each_samples_own(
    patches, share, hidden_share, roll, seed
):
    hidden = min(max(1, round(patches * hidden_share)), patches - 1)
    mask_BN = torch.rand(4, patches, generator=_generator(seed)).argsort(1) < round(patches * share)
    filled_BN = fill_mask(mask_BN, hidden, max_roll=roll, generator=_generator(seed))
    assert filled_BN.sum(1).tolist() == [hidden] * 4
    own = round(patches * share)
    shown_B = (mask_BN & ~filled_BN).sum(1)
    assert shown_B.unique().numel() == 1
    # Up to `roll` at one end of the order, and what is more than `hidden` at the other.
    assert max(0, own - hidden) <= shown_B[0] <= max(min(own, roll), own - hidden)


def test_bootmaes_masks_show_up_to_three_patches_of_the_rectangles_one_number_a_batch():
    config = MaskConfig(kind="blockwise", ratio=0.75, exact=True, block_ratio=120 / 196, max_block_patches=60, roll=3)
    assert masked_count(config, (14, 14)) == 147
    shown = []
    for seed in range(40):
        mask_BN = sample_mask(config, 8, (14, 14), generator=_generator(seed), device="cpu")
        assert mask_BN.sum(1).tolist() == [147] * 8
        blocks_BN = blockwise_mask(8, (14, 14), 120, max_patches=60, generator=_generator(seed), device="cpu")
        lost_B = (blocks_BN & ~mask_BN).sum(1)
        assert lost_B.unique().numel() == 1
        shown.append(int(lost_B[0]))
    assert set(shown) == {0, 1, 2, 3}


def test_what_fills_a_mask_is_random():
    mask_BN = torch.zeros(2000, 12, dtype=torch.bool)
    mask_BN[:, :4] = True
    counts_N = torch.stack(
        [fill_mask(mask_BN, 6, max_roll=1, generator=_generator(seed)).double().mean(0) for seed in range(40)]
    ).mean(0)
    # Half of the batches show one of the four; the other eight share two or three places.
    assert counts_N[:4].tolist() == pytest.approx([1 - 0.5 / 4] * 4, abs=0.06)
    assert counts_N[4:].tolist() == pytest.approx([2.5 / 8] * 8, abs=0.06)


def test_counts_that_cannot_be_filled_are_refused():
    for hidden in (0, 4):
        with pytest.raises(ValueError, match=f"^of 4 patches 1 to 3 can be hidden, not {hidden}$"):
            fill_mask(torch.zeros(1, 4, dtype=torch.bool), hidden)


def test_varying_masks_hide_nothing_of_about_half_the_images_and_other_shares_of_the_rest():
    """iBOT's default: 0, or .3 ± .2."""
    mask_BN = varying_mask(VaryingMaskConfig(), 4000, (14, 14), generator=_generator(), device="cpu")
    share_B = mask_BN.double().mean(dim=1)
    assert (share_B == 0).double().mean() == pytest.approx(0.5, abs=0.03)
    hidden_B = share_B[share_B > 0]
    assert hidden_B.max() <= 0.5
    assert hidden_B.mean() == pytest.approx(0.3, abs=0.015)
    assert hidden_B.std() == pytest.approx(0.4 / math.sqrt(12), abs=0.01)


def test_varying_masks_are_the_authors_on_a_small_grid():
    """Their loader's 32 masks of ratio .3 on 6x6 patches in a golden case: 8 to 10 of 10.8 patches, 9.9 on average."""
    config = VaryingMaskConfig(ratios=(0.3,), spreads=(0.0,))
    count_B = varying_mask(config, 2000, (6, 6), generator=_generator(), device="cpu").sum(dim=1).double()
    assert count_B.max() == 10
    assert 9.7 < count_B.mean() < 10


@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    kind=st.sampled_from(["random", "blockwise"]),
    ratio=st.floats(0, 0.6),
    spread=st.floats(0, 0.39),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_varying_masks_stay_within_their_shares_on_any_grid(rows, columns, kind, ratio, spread, seed):
    spread = min(spread, ratio)
    config = VaryingMaskConfig(kind=kind, ratios=(ratio,), spreads=(spread,))
    mask_BN = varying_mask(config, 6, (rows, columns), generator=_generator(seed), device="cpu")
    assert mask_BN.shape == (6, rows * columns)
    assert mask_BN.dtype == torch.bool
    count_B = mask_BN.sum(dim=1)
    patches = rows * columns
    assert count_B.max() <= patches * (ratio + spread) + 1e-3
    if kind == "random":
        assert count_B.min() >= math.floor(patches * (ratio - spread) - 1e-3)
    again = varying_mask(config, 6, (rows, columns), generator=_generator(seed), device="cpu")
    assert torch.equal(mask_BN, again)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ratios": (0.3,)}, "mask ratios and spreads must be as many, got 1 and 2"),
        ({"ratios": (), "spreads": ()}, "mask ratios and spreads must be as many, got 0 and 0"),
        ({"ratios": (0.0, 0.1)}, r"mask ratio ± spread must lie in \[0, 1\), got 0.1 ± 0.2"),
        ({"ratios": (0.0, 0.9)}, r"mask ratio ± spread must lie in \[0, 1\), got 0.9 ± 0.2"),
        ({"min_aspect": 0.0}, "min_aspect must lie above 0 and be at most 1, got 0.0"),
    ],
)
def test_a_wrong_varying_config_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        VaryingMaskConfig(**changes)


@given(st.integers(1, 4), st.integers(2, 12), st.data())
def test_hidden_values_are_taken_as_by_a_boolean_index(batch: int, patches: int, data: st.DataObject) -> None:
    hidden = data.draw(st.integers(0, patches))
    mask_BN = torch.stack([torch.tensor(data.draw(st.permutations(range(patches)))) for _ in range(batch)]) < hidden
    values = torch.randn(batch, patches, 2, 3)
    assert torch.equal(take_hidden(values, mask_BN, hidden=hidden), values[mask_BN])
    assert torch.equal(take_hidden(values, mask_BN), values[mask_BN])
    both = torch.cat([hidden_indices(mask_BN), visible_indices(mask_BN, hidden=hidden)], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(patches).expand(batch, -1))
    assert torch.equal(hidden_indices(mask_BN, hidden=hidden), hidden_indices(mask_BN))


def test_hidden_patches_of_unlike_masks_are_not_stacked() -> None:
    mask_BN = torch.tensor([[True, False, False], [True, True, False]])
    with pytest.raises(ValueError, match="equally many patches"):
        hidden_indices(mask_BN)
