"""Every recipe is a run that can be built, and says what it costs and what to expect."""

from __future__ import annotations

import inspect
import re

import pytest

from unmask.methods import METHODS
from unmask.models.encoder_config import EncoderConfig
from unmask.recipes import RECIPES, find_recipe

PUBLISHED = [name for name in RECIPES if name != "demo"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_what_its_name_says(name: str) -> None:
    config = RECIPES[name]()
    assert name == RECIPES[name].__name__
    assert name.startswith(f"{config.method}_")
    assert name.endswith(f"_{config.training.epochs:g}ep")
    size = config.settings.encoder.name.removesuffix("_224").removesuffix("_patch16").removesuffix("_patch14")
    assert size.removeprefix("convmae_") in name
    assert config.data == ""  # for the user to name
    encoder = config.settings.encoder
    assert (encoder.image_height, encoder.image_width) == (EncoderConfig().image_height, EncoderConfig().image_width)


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_docstring_has_command_score_source_and_cost(name: str) -> None:
    text = inspect.getdoc(RECIPES[name]) or ""
    config = RECIPES[name]()
    assert f"unmask pretrain IMAGENET/train --recipe {name} --device cuda" in text
    assert re.search(r"Expected: [^\[]+\[[^\]]+\]\.", text)
    assert re.search(r"Cost: about [\d,.]+ GPU-hours \(\d+ GFLOP an image, counted; not measured", text)
    assert f"{config.training.epochs:g} epochs in batches of {config.training.batch_size}." in text.splitlines()[0]


def test_the_core_has_a_recipe_for_every_published_size() -> None:
    names = set(PUBLISHED)
    assert {
        f"conmim_vit_{size}ep" for size in ("small_300", "base_300", "base_800", "large_400", "large_1600")
    } <= names
    assert {"cmae_vit_base_300ep", "cmae_vit_base_1600ep"} <= names
    assert {RECIPES[name]().method for name in names} <= set(METHODS)


def test_conmims_large_recipe_is_the_readmes() -> None:
    config = RECIPES["conmim_vit_large_1600ep"]()
    optimizer = config.settings.optimizer
    assert config.settings.encoder.layer_scale == 1e-5
    assert (optimizer.clip, optimizer.warmup_epochs, optimizer.min_lr) == (1.0, 10, 1e-5)
    assert optimizer.peak(config.training.batch_size) == 7.5e-4


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"^unknown recipe 'cmae_vit_base_300'; did you mean 'cmae_vit_base_300ep'\?$"):
        find_recipe("cmae_vit_base_300")
