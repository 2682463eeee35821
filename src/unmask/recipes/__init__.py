"""Ready-made configurations: one function a recipe, whose docstring tells command, cost and expected result."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from unmask.config import RunConfig
from unmask.recipes import cmae, conmim, masked, siamese, tokens
from unmask.recipes.demo import demo

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "demo": demo,
    "conmim_vit_small_300ep": conmim.conmim_vit_small_300ep,
    "conmim_vit_base_300ep": conmim.conmim_vit_base_300ep,
    "conmim_vit_base_800ep": conmim.conmim_vit_base_800ep,
    "conmim_vit_large_400ep": conmim.conmim_vit_large_400ep,
    "conmim_vit_large_800ep": conmim.conmim_vit_large_800ep,
    "conmim_vit_large_1600ep": conmim.conmim_vit_large_1600ep,
    "cmae_vit_base_300ep": cmae.cmae_vit_base_300ep,
    "cmae_vit_base_1600ep": cmae.cmae_vit_base_1600ep,
    "cmae_base_1600ep": cmae.cmae_base_1600ep,
    "mae_vit_base_1600ep": masked.mae_vit_base_1600ep,
    "mae_vit_large_1600ep": masked.mae_vit_large_1600ep,
    "mae_vit_huge_1600ep": masked.mae_vit_huge_1600ep,
    "simmim_vit_base_800ep": masked.simmim_vit_base_800ep,
    "maskfeat_vit_base_1600ep": masked.maskfeat_vit_base_1600ep,
    "maskfeat_vit_large_1600ep": masked.maskfeat_vit_large_1600ep,
    "data2vec_vit_base_800ep": masked.data2vec_vit_base_800ep,
    "data2vec_vit_large_800ep": masked.data2vec_vit_large_800ep,
    "bootmae_vit_base_800ep": masked.bootmae_vit_base_800ep,
    "bootmae_vit_large_800ep": masked.bootmae_vit_large_800ep,
    "convmae_base_1600ep": masked.convmae_base_1600ep,
    "supmae_vit_base_400ep": masked.supmae_vit_base_400ep,
    "beit_vit_base_800ep": tokens.beit_vit_base_800ep,
    "beit_v2_vit_base_300ep": tokens.beit_v2_vit_base_300ep,
    "beit_v2_vit_base_1600ep": tokens.beit_v2_vit_base_1600ep,
    "mc_beit_vit_base_800ep": tokens.mc_beit_vit_base_800ep,
    "mc_beit_vit_large_800ep": tokens.mc_beit_vit_large_800ep,
    "peco_vit_base_800ep": tokens.peco_vit_base_800ep,
    "cae_vit_base_1600ep": tokens.cae_vit_base_1600ep,
    "cae_vit_large_1600ep": tokens.cae_vit_large_1600ep,
    "mocov3_vit_small_300ep": siamese.mocov3_vit_small_300ep,
    "mocov3_vit_base_300ep": siamese.mocov3_vit_base_300ep,
    "simsiam_resnet50_100ep": siamese.simsiam_resnet50_100ep,
    "mixmask_resnet50_200ep": siamese.mixmask_resnet50_200ep,
    "dino_vit_small_800ep": siamese.dino_vit_small_800ep,
    "dino_vit_base_400ep": siamese.dino_vit_base_400ep,
    "ibot_vit_small_800ep": siamese.ibot_vit_small_800ep,
    "ibot_vit_base_400ep": siamese.ibot_vit_base_400ep,
    "msn_vit_small_800ep": siamese.msn_vit_small_800ep,
    "sim_vit_base_1600ep": siamese.sim_vit_base_1600ep,
    "extrema_vit_base_300ep": siamese.extrema_vit_base_300ep,
    "can_vit_base_1600ep": siamese.can_vit_base_1600ep,
}


def find_recipe(name: str) -> Callable[[], RunConfig]:
    """The recipe called `name`; an unknown one is refused with the nearest known name."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(RECIPES)}"
    raise ValueError(f"unknown recipe {name!r}; {hint}")
