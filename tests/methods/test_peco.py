"""PeCo: BEiT on other codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from unmask.data.batch import Batch
from unmask.methods.beit import BEiT, BEiTConfig
from unmask.methods.peco import PeCo, PeCoConfig

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]


def test_with_the_same_weights_and_views_it_is_beit(tiny: Tiny, batch_for: BatchFor) -> None:
    peco, beit = tiny(PeCo), tiny(BEiT)
    beit.load_state_dict(peco.state_dict())
    views = peco.make_views(batch_for(peco))
    torch.testing.assert_close(peco.losses(views), beit.losses(views), rtol=0, atol=0)
    rules = {name: peco.rule(name, value) for name, value in peco.named_parameters()}
    assert rules == {name: beit.rule(name, value) for name, value in beit.named_parameters()}


def test_the_recipe_is_beits_but_for_the_mask() -> None:
    peco, beit = vars(PeCoConfig()), vars(BEiTConfig())
    assert {name for name in beit if peco[name] != beit[name]} == {"mask"}
