"""From one table of relative positions for all blocks to one in every block: how the BEiT family is fine-tuned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch

from unmask.models.build import build_vit
from unmask.models.encoder import Encoder
from unmask.models.vit import VitEncoder


@torch.no_grad()
def with_own_tables(encoder: Encoder) -> VitEncoder:
    """The same encoder with the shared table copied into every block (BEiT's and ConMIM's fine-tuning code).

    Its features are the same; from here on each block learns positions of its own. ValueError for an encoder that has
    no shared table.
    """
    shared = cast(Any, encoder.network).rel_pos_bias if encoder.config.position == "relative" else None
    if shared is None:
        raise ValueError(f"{encoder.config.name!r} has no shared table of relative positions to copy into its blocks")
    found = build_vit(replace(encoder.config, position="relative_blocks"), mask_token=False)
    state = {
        name: value for name, value in encoder.network.state_dict().items() if not name.startswith("rel_pos_bias.")
    }
    for block in range(found.depth):
        state[f"blocks.{block}.attn.relative_position_bias_table"] = shared.relative_position_bias_table
    found.network.load_state_dict(state)
    return found
