"""Every fine-tuning recipe is its authors', and fine-tunes the network that its method exports."""

from __future__ import annotations

import inspect
import re

import pytest

from tiny_runs import tiny_settings
from unmask.methods import METHODS, find_method
from unmask.recipes.finetuning import FINETUNING
from unmask.tasks.classification import ClassifierConfig

# METHODS.md, "Fine-tuning recipes side by side": batch, absolute rate, layer decay, drop path, warm-up, network.
TABLE: dict[str, tuple[int, float, float, float, float, str]] = {
    "conmim": (1024, 4e-3, 0.65, 0.1, 20, "target"),
    "cmae": (1024, 1e-3, 0.65, 0.1, 5, "online"),
    "cmae_300ep": (1024, 2e-3, 0.65, 0.1, 5, "online"),
    "mae": (1024, 2e-3, 0.65, 0.1, 5, "online"),
    "convmae": (1024, 2e-3, 0.65, 0.1, 5, "online"),
    "supmae": (1024, 4e-3, 0.65, 0.1, 5, "online"),
    "simmim": (2048, 5e-3, 0.65, 0.1, 20, "online"),
    "beit": (1024, 4e-3, 0.65, 0.1, 20, "online"),
    "data2vec": (1024, 4e-3, 0.65, 0.2, 10, "online"),
    "cae": (4096, 8e-3, 0.65, 0.1, 5, "online"),
    "bootmae": (2048, 5e-3, 0.6, 0.1, 20, "online"),
    # MAE's own, for ViT-L: 1e-3 for 256 images, layer decay .75, drop path .2 [facebookresearch/mae, FINETUNE.md].
    "mae_large": (1024, 4e-3, 0.75, 0.2, 5, "online"),
}


def test_the_table_is_of_all_recipes() -> None:
    assert TABLE.keys() == FINETUNING.keys()


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_is_the_row_of_its_method(name: str) -> None:
    batch, rate, layer_decay, drop_path, warmup, network = TABLE[name]
    recipe = FINETUNING[name]()
    optimizer = recipe.settings.optimizer
    assert recipe.batch_size == batch
    assert optimizer.peak(batch) == pytest.approx(rate)
    # The rate scales with the batch, as in the authors' code.
    assert optimizer.peak(batch // 2) == pytest.approx(rate / 2)
    assert recipe.settings.layer_decay == layer_decay
    assert recipe.settings.drop_path == drop_path
    assert optimizer.warmup_epochs == warmup
    assert recipe.network == network
    assert recipe.epochs == (50 if name == "mae_large" else 100)
    assert optimizer.at(warmup / recipe.epochs, batch_size=batch, epochs=recipe.epochs) == pytest.approx(rate)


@pytest.mark.parametrize("name", TABLE)
def test_the_rest_is_the_same_for_all(name: str) -> None:
    settings = FINETUNING[name]().settings
    optimizer = settings.optimizer
    assert (optimizer.kind, optimizer.betas, optimizer.decay) == ("adamw", (0.9, 0.999), "cosine")
    assert optimizer.min_lr == 1e-6
    assert optimizer.weight_decay == (0.0 if name == "data2vec" else 0.05)
    assert optimizer.weight_decay_end is None
    assert (settings.mixup, settings.cutmix, settings.mix_probability, settings.smoothing) == (0.8, 1.0, 1.0, 0.1)
    assert (settings.randaugment, settings.erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (settings.head, settings.pooling, settings.norm) == ("linear", "mean", "fc")
    assert settings.own_tables
    assert settings.tuned_blocks is None
    assert settings.average == (0.9998 if name == "bootmae" else None)
    assert settings.noise == ClassifierConfig().noise


@pytest.mark.parametrize("name", TABLE)
def test_the_network_is_the_one_that_the_method_exports(name: str) -> None:
    method_name = name.partition("_")[0]
    assert method_name in METHODS
    settings = tiny_settings(method_name)
    method = find_method(method_name)(settings)
    networks = {"online": method.get_submodule("encoder")}
    if FINETUNING[name]().network == "target":
        networks["target"] = method.get_submodule("target_encoder")
    assert method.exported() is networks[FINETUNING[name]().network]
    # As the method has it by default, and not only in these tests.
    assert vars(settings).get("export") == vars(METHODS[method_name].Config()).get("export")


@pytest.mark.parametrize("name", TABLE)
def test_its_docstring_has_command_score_and_source(name: str) -> None:
    recipe = FINETUNING[name]
    text = inspect.getdoc(recipe) or ""
    assert recipe.__name__ == name
    assert f"unmask evaluate finetune RUN IMAGENET --recipe {name} --device cuda" in text
    assert re.search(r"Expected: \d\d\.\d % after \d+ epochs of pre-training[^\[]* \[(README|paper)\]", text)
    assert re.search(r"\[(code|README)\]", text)
    rate = recipe().settings.optimizer
    shown = re.findall(r"(\d+(?:\.\d+)?e-\d) for (\d+) images", text)
    if shown:
        (lr, images) = shown[0]
        assert rate.peak(int(images)) == pytest.approx(float(lr))
