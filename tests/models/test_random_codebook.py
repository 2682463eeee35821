"""The codebook of random directions against a loop, and that its seed decides it."""

from __future__ import annotations

import numpy as np
import torch

from unmask.models import random_codebook
from unmask.models.random_codebook import RandomCodebook


def test_a_patch_gets_the_code_of_largest_cosine() -> None:
    codebook = RandomCodebook(30, 12, seed=3)
    patches = torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(0))
    ids = codebook.ids(patches)
    codes = codebook.codes_VK.double().numpy()
    for sample, patch in np.ndindex(4, 7):
        values = patches[sample, patch].double().numpy()
        cosines = [code @ values / np.linalg.norm(code) / np.linalg.norm(values) for code in codes]
        assert int(ids[sample, patch]) == int(np.argmax(cosines))
    assert torch.equal(ids, codebook.ids(7.5 * patches))


def test_seed_and_size_decide_the_codes() -> None:
    before = torch.get_rng_state()
    one, same, other = (RandomCodebook(30, 12, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.codes_VK, same.codes_VK)
    assert not torch.equal(one.codes_VK, other.codes_VK)
    torch.testing.assert_close(one.codes_VK.norm(dim=1), torch.ones(30))


def test_patches_of_zeros_and_many_patches_have_codes_too() -> None:
    codebook = RandomCodebook(8, 3, seed=0)
    assert codebook.ids(torch.zeros(1, 2, 3)).tolist() == [[0, 0]]
    many = torch.randn(2, random_codebook.PATCHES_AT_ONCE, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codebook.ids(many)[1:], codebook.ids(many[1:]))


def test_autocast_changes_no_code() -> None:
    codebook = RandomCodebook(500, 48, seed=0)
    patches = torch.randn(2, 64, 48, generator=torch.Generator().manual_seed(0))
    exact = codebook.ids(patches)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook.ids(patches), exact)
