"""Methods on visual tokens, on ImageNet-1k: one recipe a published result; scores are the authors'."""

from __future__ import annotations

from dataclasses import replace

from unmask.config import RunConfig
from unmask.recipes.published import published, settings_of


def beit_vit_base_800ep() -> RunConfig:
    """BEiT, ViT-B/16, 800 epochs in batches of 2048.

    unmask pretrain IMAGENET/train --recipe beit_vit_base_800ep --device cuda

    Expected: 83.2 % ImageNet-1k top-1 after fine-tuning at 224 px [paper].
    Cost: about 86 GPU-hours (108 GFLOP an image, counted; not measured, see scripts/recipe_costs.py).

    Needs a tokenizer: `unmask tokenizer train`, or the authors' released one; add `--method.tokenizer FILE`.
    """
    settings = settings_of("beit", "vit_base_patch16_224")
    return published("beit", settings, epochs=800, batch_size=2048)


def beit_v2_vit_base_300ep() -> RunConfig:
    """BEiT v2, ViT-B/16, 300 epochs in batches of 2048.

    unmask pretrain IMAGENET/train --recipe beit_v2_vit_base_300ep --device cuda

    Expected: 85.0 % ImageNet-1k top-1 after fine-tuning at 224 px [README].
    Cost: about 39 GPU-hours (128 GFLOP an image, counted; not measured, see scripts/recipe_costs.py).

    Needs a tokenizer: `unmask tokenizer train`, or the authors' released one; add `--method.tokenizer FILE`.
    """
    settings = settings_of("beit_v2", "vit_base_patch16_224")
    settings = replace(
        settings,
        encoder=replace(settings.encoder, drop_path=0.0),
        optimizer=replace(settings.optimizer, betas=(0.9, 0.98)),
    )
    return published("beit_v2", settings, epochs=300, batch_size=2048)


def beit_v2_vit_base_1600ep() -> RunConfig:
    """BEiT v2, ViT-B/16, 1600 epochs in batches of 2048.

    unmask pretrain IMAGENET/train --recipe beit_v2_vit_base_1600ep --device cuda

    Expected: 85.5 % ImageNet-1k top-1 after fine-tuning at 224 px [README].
    Cost: about 210 GPU-hours (128 GFLOP an image, counted; not measured, see scripts/recipe_costs.py).

    Needs a tokenizer: `unmask tokenizer train`, or the authors' released one; add `--method.tokenizer FILE`.
    """
    settings = settings_of("beit_v2", "vit_base_patch16_224")
    return published("beit_v2", settings, epochs=1600, batch_size=2048)


def mc_beit_vit_base_800ep() -> RunConfig:
    """mc-BEiT, ViT-B/16, 800 epochs in batches of 2048.

    unmask pretrain IMAGENET/train --recipe mc_beit_vit_base_800ep --device cuda

    Expected: 84.1 % ImageNet-1k top-1 after fine-tuning at 224 px [README].
    Cost: about 90 GPU-hours (112 GFLOP an image, counted; not measured, see scripts/recipe_costs.py).

    Needs a tokenizer: `unmask tokenizer train`, or the authors' released one; add `--method.tokenizer FILE`.
    """
    settings = settings_of("mc_beit", "vit_base_patch16_224")
    return published("mc_beit", settings, epochs=800, batch_size=2048)


def mc_beit_vit_large_800ep() -> RunConfig:
    """mc-BEiT, ViT-L/16, 800 epochs in batches of 2048.

    unmask pretrain IMAGENET/train --recipe mc_beit_vit_large_800ep --device cuda

    Expected: 85.6 % ImageNet-1k top-1 after fine-tuning at 224 px [README].
    Cost: about 300 GPU-hours (378 GFLOP an image, counted; not measured, see scripts/recipe_costs.py).

    Needs a tokenizer: `unmask tokenizer train`, or the authors' released one; add `--method.tokenizer FILE`.
    """
    settings = settings_of("mc_beit", "vit_large_patch16_224")
    return published("mc_beit", settings, epochs=800, batch_size=2048)


def peco_vit_base_800ep() -> RunConfig:
    """PeCo, ViT-B/16, 800 epochs in batches of 2048.

    unmask pretrain IMAGENET/train --recipe peco_vit_base_800ep --device cuda

    Expected: 84.5 % ImageNet-1k top-1 after fine-tuning at 224 px [from memory, unverified].
    Cost: about 87 GPU-hours (108 GFLOP an image, counted; not measured, see scripts/recipe_costs.py).

    Needs a tokenizer: `unmask tokenizer train`, or the authors' released one; add `--method.tokenizer FILE`.
    """
    settings = settings_of("peco", "vit_base_patch16_224")
    return published("peco", settings, epochs=800, batch_size=2048)


def cae_vit_base_1600ep() -> RunConfig:
    """CAE, ViT-B/16, 1600 epochs in batches of 2048.

    unmask pretrain IMAGENET/train --recipe cae_vit_base_1600ep --device cuda

    Expected: 83.9 % ImageNet-1k top-1 after fine-tuning at 224 px, 70.3 % linear probe [README].
    Cost: about 180 GPU-hours (110 GFLOP an image, counted; not measured, see scripts/recipe_costs.py).

    Needs a tokenizer: `unmask tokenizer train`, or the authors' released one; add `--method.tokenizer FILE`.
    """
    settings = settings_of("cae", "vit_base_patch16_224")
    return published("cae", settings, epochs=1600, batch_size=2048)


def cae_vit_large_1600ep() -> RunConfig:
    """CAE, ViT-L/16, 1600 epochs in batches of 2048.

    unmask pretrain IMAGENET/train --recipe cae_vit_large_1600ep --device cuda

    Expected: 86.2 % ImageNet-1k top-1 after fine-tuning at 224 px [README].
    Cost: about 500 GPU-hours (314 GFLOP an image, counted; not measured, see scripts/recipe_costs.py).

    Needs a tokenizer: `unmask tokenizer train`, or the authors' released one; add `--method.tokenizer FILE`.
    """
    settings = settings_of("cae", "vit_large_patch16_224")
    return published("cae", settings, epochs=1600, batch_size=2048)
