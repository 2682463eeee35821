"""Fine-tuning as the authors of each method did it on ImageNet-1k: one function a method.

Every docstring names the command, the published score and where the settings come from. What is the same for all, as
far as their code was read: AdamW, weight decay .05, mixup .8, cutmix 1.0, label smoothing .1, RandAugment 9 / .5,
erasing .25, 100 epochs of ViT-B at 224 pixels, mean pooling with a new norm. On data of your own,
`unmask evaluate finetune` takes the settings from here and chooses epochs, batch and rate by the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from typing_extensions import Doc

from unmask.tasks.classification import ClassifierConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """How an encoder is fine-tuned on ImageNet-1k."""

    settings: Annotated[ClassifierConfig, Doc("The classifier and its training.")]
    epochs: Annotated[float, Doc("Passes over the train images.")] = 100.0
    batch_size: Annotated[int, Doc("Images of one optimizer step.")] = 1024
    network: Annotated[Literal["online", "target"], Doc("Which of the method's networks is fine-tuned.")] = "online"


def _recipe(
    *,
    lr: float,
    batch_size: int = 1024,
    warmup: float,
    layer_decay: float = 0.65,
    drop_path: float = 0.1,
    weight_decay: float = 0.05,
    average: float | None = None,
    network: Literal["online", "target"] = "online",
) -> FinetuneRecipe:
    """MAE's settings with what differs; `lr` is for a batch of `batch_size`, and scales with it."""
    plain = ClassifierConfig()
    optimizer = replace(plain.optimizer, lr=lr, lr_batch=batch_size, warmup_epochs=warmup, weight_decay=weight_decay)
    settings = replace(plain, optimizer=optimizer, layer_decay=layer_decay, drop_path=drop_path, average=average)
    return FinetuneRecipe(settings=settings, batch_size=batch_size, network=network)


def conmim() -> FinetuneRecipe:
    """ConMIM, ViT-B/16.

    unmask evaluate finetune RUN IMAGENET --recipe conmim --device cuda

    Expected: 83.5 % after 300 epochs of pre-training, 83.7 % after 800 [README]. The target (EMA) network is
    fine-tuned; its table of relative positions is copied into every block. 4e-3 for 1024 images, warm-up 20 [README].
    """
    return _recipe(lr=4e-3, warmup=20, network="target")


def cmae() -> FinetuneRecipe:
    """CMAE, ViT-B/16.

    unmask evaluate finetune RUN IMAGENET --recipe cmae --device cuda

    Expected: 84.7 % after 1600 epochs of pre-training [README]. 1e-3 for 1024 images, warm-up 5 [code]; mixup and
    cutmix take turns.
    """
    return _recipe(lr=1e-3, warmup=5)


def cmae_300ep() -> FinetuneRecipe:
    """CMAE, ViT-B/16, after a short pre-training.

    unmask evaluate finetune RUN IMAGENET --recipe cmae_300ep --device cuda

    Expected: 83.8 % after 300 epochs of pre-training [README]. 2e-3 for 1024 images instead of 1e-3 [code].
    """
    return _recipe(lr=2e-3, warmup=5)


def mae() -> FinetuneRecipe:
    """MAE, ViT-B/16.

    unmask evaluate finetune RUN IMAGENET --recipe mae --device cuda

    Expected: 83.6 % after 1600 epochs of pre-training [README]. 5e-4 for 256 images, batches of 1024, warm-up 5 [code].
    """
    return _recipe(lr=2e-3, warmup=5)


def mae_large() -> FinetuneRecipe:
    """MAE, ViT-L/16.

    unmask evaluate finetune RUN IMAGENET --recipe mae_large --device cuda

    Expected: 85.9 % after 1600 epochs of pre-training [README]. 1e-3 for 256 images, layer decay .75, drop path .2, 50
    epochs [code].
    """
    return replace(_recipe(lr=4e-3, warmup=5, layer_decay=0.75, drop_path=0.2), epochs=50.0)


def convmae() -> FinetuneRecipe:
    """ConvMAE, its hybrid encoder.

    unmask evaluate finetune RUN IMAGENET --recipe convmae --device cuda

    Expected: 85.0 % after 1600 epochs of pre-training [README]. As MAE [code].
    """
    return _recipe(lr=2e-3, warmup=5)


def supmae() -> FinetuneRecipe:
    """SupMAE, ViT-B/16.

    unmask evaluate finetune RUN IMAGENET --recipe supmae --device cuda

    Expected: 83.6 % after 400 epochs of pre-training [README]. 1e-3 for 256 images, batches of 1024 [code].
    """
    return _recipe(lr=4e-3, warmup=5)


def simmim() -> FinetuneRecipe:
    """SimMIM, ViT-B/16.

    unmask evaluate finetune RUN IMAGENET --recipe simmim --device cuda

    Expected: 83.8 % after 800 epochs of pre-training [README]. 1.25e-3 for 512 images, batches of 2048, warm-up 20; a
    table of relative positions in every block [code].
    """
    return _recipe(lr=5e-3, batch_size=2048, warmup=20)


def beit() -> FinetuneRecipe:
    """BEiT, ViT-B/16.

    unmask evaluate finetune RUN IMAGENET --recipe beit --device cuda

    Expected: 83.2 % after 800 epochs of pre-training [paper]. 4e-3 for 1024 images, warm-up 20 [README].
    """
    return _recipe(lr=4e-3, warmup=20)


def data2vec() -> FinetuneRecipe:
    """data2vec, ViT-B/16.

    unmask evaluate finetune RUN IMAGENET --recipe data2vec --device cuda

    Expected: 84.2 % after 800 epochs of pre-training [paper]. 4e-3 for 1024 images, no weight decay, drop path .2,
    warm-up 10 [code].
    """
    return _recipe(lr=4e-3, warmup=10, weight_decay=0.0, drop_path=0.2)


def cae() -> FinetuneRecipe:
    """CAE, ViT-B/16.

    unmask evaluate finetune RUN IMAGENET --recipe cae --device cuda

    Expected: 83.9 % after 1600 epochs of pre-training [README]. 8e-3 for 4096 images, warm-up 5 [code].
    """
    return _recipe(lr=8e-3, batch_size=4096, warmup=5)


def bootmae() -> FinetuneRecipe:
    """BootMAE, ViT-B/16.

    unmask evaluate finetune RUN IMAGENET --recipe bootmae --device cuda

    Expected: 84.2 % after 800 epochs of pre-training [README]. 5e-3 for 2048 images, layer decay .6, warm-up 20,
    averaged weights (.9998) [code].
    """
    return _recipe(lr=5e-3, batch_size=2048, warmup=20, layer_decay=0.6, average=0.9998)


FINETUNING: dict[str, Callable[[], FinetuneRecipe]] = {
    "conmim": conmim,
    "cmae": cmae,
    "cmae_300ep": cmae_300ep,
    "mae": mae,
    "mae_large": mae_large,
    "convmae": convmae,
    "supmae": supmae,
    "simmim": simmim,
    "beit": beit,
    "data2vec": data2vec,
    "cae": cae,
    "bootmae": bootmae,
}
