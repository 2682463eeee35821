"""A classifier is timm's, its targets are timm's, and what learns is what was asked for."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.layers import DropPath, resample_abs_pos_embed
from torch import Tensor, nn

from tiny_classifiers import BARE, CLASSES, MEAN, NETWORKS, STD, TINY, batch_of, tiny_pretrained, tiny_task
from unmask.data.batch import Batch, CropConfig
from unmask.data.randaugment import RandAugment
from unmask.models.build import build_encoder
from unmask.models.hybrid import HybridEncoder
from unmask.models.pixels import PixelEncoder
from unmask.models.vit import VitEncoder
from unmask.objectives.consistency import noise_and_consistency
from unmask.optimisation import OptimizerConfig
from unmask.tasks.classification import (
    NORM_EPS,
    AttentivePool,
    ClassificationTask,
    Classifier,
    ClassifierConfig,
    NoiseConfig,
    encoder_to_tune,
)
from unmask.training.trainer import Trainer, TrainingConfig
from unmask.views import generators

K = len(CLASSES)
SHALLOW = replace(TINY, depth=1)
ATTENTIVE = replace(BARE, head="attentive", norm="batch", tuned_blocks=0)
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}


def normalised(batch: Batch) -> Tensor:
    """The images of a batch as a network sees them, computed another way."""
    images_BCHW = batch.crops[0][:, 0].double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return ((images_BCHW - mean) / std).float()


def seed_of_views(seed: int, count: int) -> int:
    """The seed under which timm's code draws for a batch, after the flips."""
    host, _ = generators(seed, "cpu")
    torch.rand(count, generator=host)
    return int(torch.randint(2**63 - 1, (), generator=host))


def trainer_of(task: ClassificationTask, steps: int = 10) -> Trainer[Batch]:
    return Trainer(
        task,
        TrainingConfig(epochs=steps, batch_size=4, workers=0),
        steps_per_epoch=1,
        device=torch.device("cpu"),
    )


# Targets.


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**62),
    st.sampled_from([(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)]),
    st.sampled_from([1.0, 0.5]),
    st.floats(0, 1),
    st.booleans(),
)
def test_mixup_and_cutmix_are_timms(
    seed: int, alphas: tuple[float, float], probability: float, smoothing: float, several: bool
) -> None:
    mixup, cutmix = alphas
    config = replace(BARE, mixup=mixup, cutmix=cutmix, mix_probability=probability, smoothing=smoothing)
    targets_NK = (torch.arange(6 * K).view(6, K) % 4 == 0).float() if several else None
    task, batch = tiny_task(config, SHALLOW, targets_NK=targets_NK), batch_of((32, 32), 6, seed=seed)
    views = task.make_views(batch)
    np.random.seed(seed_of_views(seed, 6) % 2**32)
    timms = Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        prob=probability,
        label_smoothing=smoothing,
        num_classes=K,
        multi_label=several,
    )
    images, targets = timms(normalised(batch), batch.labels if targets_NK is None else targets_NK)
    torch.testing.assert_close(views.images, images, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(views.targets, targets, rtol=0, atol=1e-6)
    if not several:
        torch.testing.assert_close(views.targets.sum(dim=1), torch.ones(6))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**62), st.floats(0, 0.5))
def test_the_share_of_a_picture_is_the_share_of_its_class(seed: int, smoothing: float) -> None:
    """Without timm: black and white pictures in pairs, so that the mean brightness tells the share of each."""
    batch = batch_of((32, 32), 4, seed=seed)
    images = torch.zeros_like(batch.crops[0])
    images[:2] = 255
    batch = replace(batch, crops=(images,), labels=torch.tensor([1, 1, 0, 0]))
    task = tiny_task(replace(BARE, mixup=0.8, cutmix=1.0, smoothing=smoothing), SHALLOW, classes=("black", "white"))
    views = task.make_views(batch)
    brightness = (views.images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]).mean((1, 2, 3))
    expected = torch.stack([1 - brightness, brightness], dim=1) * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(views.targets, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1))
def test_smoothing_without_mixing_is_the_formula(smoothing: float) -> None:
    batch = batch_of((32, 32))
    assert batch.labels is not None
    views = tiny_task(replace(BARE, smoothing=smoothing), SHALLOW).make_views(batch)
    for label, row in zip(batch.labels.tolist(), views.targets.tolist(), strict=True):
        expected = [smoothing / K + (1 - smoothing if place == label else 0) for place in range(K)]
        assert row == pytest.approx(expected, abs=1e-6)
    targets_NK = torch.eye(K)[[0, 1, 2, 3]]
    several = tiny_task(replace(BARE, smoothing=smoothing), SHALLOW, targets_NK=targets_NK).make_views(batch)
    torch.testing.assert_close(several.targets, targets_NK * (1 - smoothing) + smoothing / 2)


def test_cross_entropy_of_soft_targets_and_of_several_classes() -> None:
    batch = batch_of((32, 32))
    assert batch.labels is not None
    task = tiny_task(replace(BARE, smoothing=0.2)).eval()
    views = task.make_views(batch)
    logits = task.classifier(normalised(batch)).double()
    log_p = logits - logits.exp().sum(dim=1, keepdim=True).log()
    losses = task.losses(views)
    assert losses.keys() == {"class"}
    assert losses["class"].item() == pytest.approx(-(views.targets * log_p).sum(dim=1).mean().item(), rel=1e-5)
    hard = F.cross_entropy(logits, batch.labels, label_smoothing=0.2)
    assert losses["class"].item() == pytest.approx(hard.item(), rel=1e-5)

    targets_NK = torch.zeros(9, K)
    targets_NK[[0, 1, 1, 3], [2, 0, 6, 5]] = 1
    task = tiny_task(targets_NK=targets_NK).eval()
    # Rows follow the train source, not the batch.
    batch = replace(batch, indices=torch.tensor([3, 1, 0, 8]))
    views = task.make_views(batch)
    assert torch.equal(views.targets, targets_NK[[3, 1, 0, 8]])
    p = task.classifier(normalised(batch)).double().sigmoid()
    binary = -(views.targets * p.log() + (1 - views.targets) * (1 - p).log()).mean()
    losses = task.losses(views)
    assert losses.keys() == {"classes"}
    assert losses["classes"].item() == pytest.approx(binary.item(), rel=1e-5)
    assert (task.several, tiny_task().several) == (True, False)


# Pictures.


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**62), st.floats(0.1, 1))
def test_erasing_is_timms(seed: int, probability: float) -> None:
    batch = batch_of((32, 32), 8, seed=seed)
    views = tiny_task(replace(BARE, erasing=probability), SHALLOW).make_views(batch)
    drawn = seed_of_views(seed, 8)
    plain = normalised(batch)
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(drawn)
        torch.manual_seed(drawn)
        expected = RandomErasing(probability, mode="pixel", device="cpu")(plain.clone())
    random.setstate(state)
    torch.testing.assert_close(views.images, expected, rtol=1e-5, atol=1e-5)


def test_erasing_replaces_a_rectangle_by_noise() -> None:
    batch = batch_of((32, 32), 64)
    plain = normalised(batch)
    views = tiny_task(replace(BARE, erasing=0.5)).make_views(batch)
    changed_BHW = ((views.images - plain).abs() > 1e-4).any(dim=1)
    erased = [image for image in changed_BHW if image.any()]
    assert 16 < len(erased) < 48
    for image_HW in erased:
        rows, columns = image_HW.any(dim=1).nonzero(), image_HW.any(dim=0).nonzero()
        area = int(rows[-1] - rows[0] + 1) * int(columns[-1] - columns[0] + 1)
        assert int(image_HW.sum()) == area <= 32 * 32 / 3 * 1.1
    noise = views.images[:, 0][changed_BHW]
    assert abs(float(noise.mean())) < 0.1
    assert 0.9 < float(noise.std()) < 1.1


def test_flips_are_of_half_of_the_pictures() -> None:
    batch = batch_of((8, 8), 200)
    plain = normalised(batch)
    views = tiny_task(replace(BARE, flip=0.5)).make_views(batch)
    flipped_B = [
        torch.allclose(view, image.flip(-1), atol=1e-5) for view, image in zip(views.images, plain, strict=True)
    ]
    same_B = [torch.allclose(view, image, atol=1e-5) for view, image in zip(views.images, plain, strict=True)]
    assert all(one != other for one, other in zip(flipped_B, same_B, strict=True))
    assert 70 < sum(flipped_B) < 130
    assert torch.allclose(tiny_task().make_views(batch).images, plain, atol=1e-5)


FULL = replace(BARE, mixup=0.8, cutmix=1.0, smoothing=0.1, erasing=0.9, flip=0.5, noise=NoiseConfig(sigma=0.2))


def test_a_batch_has_the_views_and_losses_of_its_seed() -> None:
    task, batch = tiny_task(FULL), batch_of((32, 32))
    np.random.seed(2), torch.manual_seed(3)
    first = task.make_views(batch)
    loss = task.losses(first)["noise and consistency"]
    np.random.seed(5), torch.manual_seed(6)
    # (What checks the shapes of tensors in these tests draws from Python's own state.)
    state = np.random.get_state()[1].tolist(), torch.get_rng_state()
    again = task.make_views(batch)
    assert np.random.get_state()[1].tolist() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.targets, first.targets)
    assert torch.equal(task.losses(again)["noise and consistency"], loss)
    other = task.make_views(replace(batch, seed=6))
    assert not torch.equal(other.images, first.images)
    assert not torch.equal(other.targets, first.targets)
    assert not torch.equal(task.losses(other)["noise and consistency"], loss)


def test_without_a_seed_torchs_own_state_decides() -> None:
    task, batch = tiny_task(FULL), batch_of((32, 32), seed=None)
    torch.manual_seed(3)
    first = task.make_views(batch)
    other = task.make_views(batch)
    torch.manual_seed(3)
    assert torch.equal(task.make_views(batch).images, first.images)
    assert not torch.equal(other.images, first.images)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_noise_is_added_to_pixels_before_normalisation(copies: int) -> None:
    noise = NoiseConfig(sigma=0.25, copies=copies, consistency=3.0, entropy=0.7)
    task, batch = tiny_task(replace(BARE, noise=noise)).eval(), batch_of((32, 32), 12)
    assert batch.labels is not None
    views = task.make_views(batch)
    assert views.images.shape == (12 * copies, 3, 32, 32)
    assert views.targets.shape == (12, K)
    added = (views.images.unflatten(0, (copies, 12)) - normalised(batch)) * torch.tensor(STD)[:, None, None]
    assert abs(float(added.mean())) < 0.01
    for channel in range(3):
        assert float(added[:, :, channel].std()) == pytest.approx(0.25, rel=0.03)
    flat = added.flatten(1)
    for one in range(copies):
        for other in range(one):
            assert abs(float(torch.corrcoef(flat[[one, other]])[0, 1])) < 0.03
    logits_MBK = task.classifier(views.images).unflatten(0, (copies, 12))
    expected = noise_and_consistency(logits_MBK, batch.labels, kl_weight=3.0, entropy_weight=0.7)
    losses = task.losses(views)
    assert losses.keys() == {"noise and consistency"}
    assert losses["noise and consistency"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_workers_cut_crops_of_the_encoders_size_and_retouch_them() -> None:
    task = tiny_task(replace(BARE, crop_scale=(0.3, 0.9), image_height=48, image_width=32))
    assert task.crops == (CropConfig(height=48, width=32, scale=(0.3, 0.9)),)
    assert task.retouch is None
    augment = tiny_task(replace(BARE, randaugment="rand-m5")).retouch
    assert isinstance(augment, RandAugment)
    fill = {tuple(operation.kwargs["fillcolor"]) for operation in augment._transform.ops}
    assert fill == {(102, 128, 153)}, "the data's mean"
    assert isinstance(tiny_task(replace(BARE, randaugment="rand-m5"), replace(TINY, channels=1)).retouch, RandAugment)


def test_four_channels_are_changed_erased_and_mixed_as_three_are() -> None:
    encoder = build_encoder(replace(TINY, channels=4), mask_token=False)
    four = replace(tiny_pretrained(), encoder=encoder, mean=(0.5,) * 4, std=(0.2,) * 4)
    task = ClassificationTask(four, replace(BARE, randaugment="rand-m9", mixup=0.8, erasing=1.0), CLASSES)
    assert isinstance(task.retouch, RandAugment)
    crop = batch_of((32, 32), channels=4).crops[0][0, 0]
    changed = [task.retouch(crop, np.random.default_rng(seed)) for seed in range(8)]
    assert all(one.shape == crop.shape for one in changed)
    assert not all(torch.equal(one, crop) for one in changed)
    views = task.make_views(batch_of((32, 32), channels=4))
    assert views.images.shape == (4, 4, 32, 32)
    assert torch.isfinite(task.losses(views)["class"])


# The network.

VIT_ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"fc_norm": True}),
    "sincos": ("vit_tiny_patch16_224", {"fc_norm": True}),
    "relative": (
        "beit_base_patch16_224",
        {"use_fc_norm": True, "use_rel_pos_bias": True, "use_shared_rel_pos_bias": False, "init_values": 0.1},
    ),
    "beit": ("beit_base_patch16_224", {"use_fc_norm": True}),
    "eva02": ("eva02_tiny_patch14_224", {"use_fc_norm": True}),
}


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "class"])
@pytest.mark.parametrize("network", VIT_ARGUMENTS)
def test_logits_are_those_of_timms_own_classifier(network: str, pooling: Any) -> None:
    task = tiny_task(replace(BARE, pooling=pooling), NETWORKS[network]).eval()
    name, arguments = VIT_ARGUMENTS[network]
    if network == "relative":
        arguments = arguments | {"mlp_ratio": 4.0}
    pool = {"mean": "avg", "class": "token"}[pooling]
    theirs = timm.create_model(name, num_classes=K, global_pool=pool, **SIZES, **arguments).eval()
    state = {key.removeprefix("encoder.vit."): value for key, value in task.classifier.state_dict().items()}
    theirs.load_state_dict(state)
    assert isinstance(task.classifier.fc_norm, nn.LayerNorm)
    assert task.classifier.fc_norm.eps == theirs.fc_norm.eps == NORM_EPS
    images = normalised(batch_of((32, 32)))
    logits = task.classifier(images)
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, theirs(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("norm", ["fc", "encoder", "batch"])
def test_the_feature_is_the_mean_token_under_the_norm_asked_for(network: str, norm: Any) -> None:
    config = NETWORKS[network]
    task = tiny_task(replace(BARE, norm=norm), config).eval()
    classifier, encoder = task.classifier, tiny_pretrained(config).encoder
    images = normalised(batch_of(encoder.image_size))
    new_norm = norm == "fc" and network not in ("resnet18", "convnext_atto", "igpt")
    if new_norm:
        encoder.remove_norm()
    if isinstance(encoder, PixelEncoder):
        tokens = encoder.last_tokens(encoder.ids(images))
    else:
        tokens = encoder(images)
    pooled = tokens[:, encoder.prefix :].mean(dim=1)
    if new_norm:
        norm_of = cast(nn.LayerNorm, classifier.fc_norm)
        pooled = F.layer_norm(pooled, (encoder.width,), norm_of.weight, norm_of.bias, 1e-6)
    elif norm == "batch":
        pooled = pooled / math.sqrt(1 + 1e-6)
    else:
        assert isinstance(classifier.fc_norm, nn.Identity)
    expected = pooled @ classifier.head.weight.T + classifier.head.bias
    torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-4)


def test_the_batch_norm_before_a_head_is_without_affine_and_moves() -> None:
    task = tiny_task(replace(BARE, norm="batch"))
    norm = task.classifier.fc_norm
    assert isinstance(norm, nn.BatchNorm1d)
    assert list(norm.parameters()) == []
    assert norm.eps == 1e-6
    task.classifier(normalised(batch_of((32, 32))))
    assert norm.running_mean is not None
    assert norm.running_mean.abs().sum() > 0


def test_a_new_head_is_small_and_has_no_bias_of_its_own() -> None:
    torch.manual_seed(0)
    head = ClassificationTask(tiny_pretrained(), replace(BARE, head_std=2e-5), CLASSES * 30).classifier.head
    assert float(head.weight.detach().std()) == pytest.approx(2e-5, rel=0.05)
    assert head.bias.abs().sum() == 0


def test_the_encoder_that_is_given_stays_as_it_is() -> None:
    for config in NETWORKS.values():
        pretrained = tiny_pretrained(config)
        before = {name: value.clone() for name, value in pretrained.encoder.state_dict().items()}
        size = tuple(2 * pixels for pixels in pretrained.encoder.image_size)
        task = ClassificationTask(
            pretrained, replace(BARE, image_height=size[0], image_width=size[1], drop_path=0.1), CLASSES
        )
        trainer_of(task).train_step([batch_of((size[0], size[1]))])
        after = pretrained.encoder.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert pretrained.encoder.config == config
        if isinstance(pretrained.encoder, VitEncoder | HybridEncoder):
            assert any("norm" in name and "blocks" not in name for name, _ in pretrained.encoder.named_parameters())


# What learns.

TRAINED = NETWORKS | {
    "registers": replace(TINY, name="vit_small_patch14_reg4_dinov2"),
    "class token": TINY,
    "igpt, seeing all": replace(NETWORKS["igpt"], causal=False),
}


@pytest.mark.parametrize("network", TRAINED)
def test_in_whole_fine_tuning_every_weight_learns(network: str) -> None:
    pooling: Any = "class" if network == "class token" else "mean"
    task = tiny_task(replace(BARE, pooling=pooling), TRAINED[network]).train()
    batch = batch_of(task.classifier.encoder.image_size)
    task(batch)["class"].backward()
    without = [
        name
        for name, parameter in task.classifier.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert without == []
    assert all(parameter.requires_grad for parameter in task.classifier.parameters())
    names = [name.rpartition(".")[2] for name, _ in task.classifier.named_parameters()]
    if network in ("sincos", "convmae"):
        assert "pos_embed" in names, "fixed in pre-training, learnt in fine-tuning"
    if network == "relative":
        assert names.count("relative_position_bias_table") == 3


def test_a_shared_table_may_stay_shared() -> None:
    config = NETWORKS["relative"]
    assert encoder_to_tune(tiny_pretrained(config), BARE).config.position == "relative_blocks"
    kept = encoder_to_tune(tiny_pretrained(config), replace(BARE, own_tables=False))
    assert kept.config.position == "relative"
    images = normalised(batch_of((32, 32)))
    torch.testing.assert_close(
        kept.eval()(images), encoder_to_tune(tiny_pretrained(config), BARE).eval()(images), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("network", ["vit", "relative", "convmae", "igpt"])
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_in_partial_fine_tuning_only_the_last_blocks_learn(network: str, blocks: int) -> None:
    task = tiny_task(replace(BARE, tuned_blocks=blocks), NETWORKS[network])
    depth = task.classifier.encoder.depth
    batch = batch_of(task.classifier.encoder.image_size)
    before = {name: value.clone() for name, value in task.classifier.named_parameters()}
    trainer_of(task).train_step([batch])
    learning = [f"blocks.{block}." for block in range(depth - blocks, depth)] + ["norm."] * bool(blocks)
    for name, value in task.classifier.named_parameters():
        inside = name.split(".", 2)[2] if name.startswith("encoder.") else None
        expected = inside is None or inside.startswith(tuple(learning))
        assert torch.equal(value, before[name]) != expected, name
        assert (value.grad is not None) == expected, name


def test_what_is_frozen_stays_in_eval_mode_and_the_rest_does_not() -> None:
    task = tiny_task(replace(BARE, tuned_blocks=1, drop_path=0.5)).train()
    blocks = cast(Any, task.classifier.encoder.network).blocks
    assert [block.training for block in blocks] == [False, False, True]
    assert cast(Any, task.classifier.encoder.network).patch_embed.training is False
    assert task.classifier.head.training
    assert task.training
    task.eval()
    assert not any(module.training for module in task.modules())
    task.train()
    assert [block.training for block in blocks] == [False, False, True]


def test_batch_norm_below_what_is_tuned_does_not_move() -> None:
    task = tiny_task(replace(BARE, tuned_blocks=1), NETWORKS["resnet18"])
    encoder = task.classifier.encoder
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    trainer_of(task).train_step([batch_of((64, 64))])
    moved = {name.split(".")[1] for name, buffer in encoder.named_buffers() if not torch.equal(buffer, before[name])}
    learning = {name.split(".")[1] for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert moved == learning
    assert learning == {"layer4"}


@torch.no_grad()
def test_drop_path_is_on_in_training_and_off_in_eval() -> None:
    task, images = tiny_task(replace(BARE, drop_path=0.6)), normalised(batch_of((32, 32), 16))
    rates = [
        module.drop_prob if isinstance(module, DropPath) else 0.0
        for block in cast(Any, task.classifier.encoder.network).blocks
        for module in (block.drop_path1, block.drop_path2)
    ]
    assert rates == pytest.approx([0, 0, 0.3, 0.3, 0.6, 0.6])
    task.train()
    assert not torch.equal(task.classifier(images), task.classifier(images))
    task.eval()
    assert torch.equal(task.classifier(images), task.classifier(images))
    plain = tiny_task().train()
    assert torch.equal(plain.classifier(images), plain.classifier(images))


# The attentive probe.


@torch.no_grad()
@pytest.mark.parametrize("width", [48, 128])
def test_attentive_pooling_by_hand(width: int) -> None:
    torch.manual_seed(0)
    heads = 2 if width == 128 else 1
    config = replace(TINY, width=width, heads=2)
    pool = tiny_task(ATTENTIVE, config).classifier.attentive
    assert isinstance(pool, AttentivePool)
    for parameter in pool.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    tokens_BLD = torch.randn(2, 5, width)
    weights = {name: value.double() for name, value in pool.state_dict().items()}

    def norm(x: Tensor, which: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        return scaled * weights[f"norm_{which}.weight"] + weights[f"norm_{which}.bias"]

    inputs = {
        "query": norm(weights["query"][0], "query"),
        "key": norm(tokens_BLD.double(), "key"),
        "value": norm(tokens_BLD.double(), "value"),
    }
    projected = {
        name: x @ weight.T + bias
        for (name, x), weight, bias in zip(
            inputs.items(),
            weights["attention.in_proj_weight"].split(width),
            weights["attention.in_proj_bias"].split(width),
            strict=True,
        )
    }
    rows = []
    for image in range(2):
        gathered = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            q, k, v = projected["query"][0, part], projected["key"][image, :, part], projected["value"][image, :, part]
            share_L = ((k @ q) / math.sqrt(width // heads)).softmax(dim=0)
            gathered.append(share_L @ v)
        rows.append(torch.cat(gathered) @ weights["attention.out_proj.weight"].T + weights["attention.out_proj.bias"])
    torch.testing.assert_close(pool(tokens_BLD).double(), torch.stack(rows), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_attentive_probe_reads_all_tokens_after_the_encoders_norm() -> None:
    for network in ("vit", "igpt", "resnet18"):
        task = tiny_task(ATTENTIVE, NETWORKS[network]).eval()
        encoder = tiny_pretrained(NETWORKS[network]).encoder
        images = normalised(batch_of(encoder.image_size))
        pool = cast(AttentivePool, task.classifier.attentive)
        expected = task.classifier.head(pool(encoder(images)) / math.sqrt(1 + 1e-6))
        torch.testing.assert_close(task.classifier(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_attentive_probe_leaves_the_encoder_alone(network: str) -> None:
    # Drop path asked for all the same: a frozen encoder does not drop.
    task = tiny_task(replace(ATTENTIVE, drop_path=0.5), NETWORKS[network])
    batch = batch_of(task.classifier.encoder.image_size)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    trainer = trainer_of(task)
    assert not any(module.training for module in task.classifier.encoder.modules())
    images = normalised(batch)
    assert torch.equal(task.classifier.encoder(images), task.classifier.encoder(images))
    losses = [trainer.train_step([batch]).loss for _ in range(8)]
    assert losses[-1] < losses[0]
    for name, value in task.state_dict().items():
        # The key's bias shifts all scores alike.
        assert torch.equal(value, before[name]) == name.startswith("classifier.encoder."), name
    assert not any(parameter.requires_grad for parameter in task.classifier.encoder.parameters())
    assert not any(parameter.grad is not None for parameter in task.classifier.encoder.parameters())


# Rates, averages.


@pytest.mark.parametrize("network", ["vit", "relative", "convmae", "igpt"])
def test_each_layer_learns_at_its_rate(network: str) -> None:
    config = replace(BARE, layer_decay=0.7, optimizer=OptimizerConfig(lr=1e-2, lr_batch=None, weight_decay=0.05))
    task = tiny_task(config, NETWORKS[network])
    depth = task.classifier.encoder.depth
    trainer = trainer_of(task)
    result = None
    for _ in range(3):
        result = trainer.train_step([batch_of(task.classifier.encoder.image_size)])
    assert result is not None
    assert result.lr > 0
    seen = set()
    for group in trainer.optimizer.param_groups:
        for name in group["names"]:
            short = name.removeprefix("classifier.").removeprefix("encoder.").partition(".")[2]
            if not name.startswith("classifier.encoder."):
                power = 0
            elif short.startswith("blocks."):
                power = depth - int(short.split(".")[1])
            elif short.startswith("norm."):
                power = 1
            else:
                power = depth + 1
            assert group["lr"] == pytest.approx(result.lr * 0.7**power), name
            vector = task.get_parameter(name).ndim == 1 or short in ("pos_embed", "cls_token")
            assert group["weight_decay"] == (0 if vector else 0.05), name
            seen.add(name)
    assert seen == {name for name, parameter in task.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("network", ["vit", "resnet18"])
def test_averaged_weights_follow_the_formula(network: str) -> None:
    task = tiny_task(replace(BARE, average=0.9, norm="batch", drop_path=0.3), NETWORKS[network])
    assert task.judged is task.average
    assert not any(module.training for module in task.judged.modules()), "from the beginning"
    expected = {name: value.clone() for name, value in cast(Classifier, task.average).state_dict().items()}
    started = {name: value.clone() for name, value in expected.items()}
    trainer = trainer_of(task)
    batch = batch_of(task.classifier.encoder.image_size)
    for step in range(4):
        trainer.train_step([replace(batch, seed=step)])
        for name, value in task.classifier.state_dict().items():
            if value.is_floating_point():
                expected[name] = 0.9 * expected[name] + 0.1 * value
    average = cast(Classifier, task.average)
    assert not any(module.training for module in average.modules()), "always in eval mode"
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not any("average" in name for group in trainer.optimizer.param_groups for name in group["names"])
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
            assert not torch.equal(value, started[name]), name
    images = normalised(batch)
    task.eval()
    assert not torch.allclose(task.judged(images), task.classifier(images))
    plain = tiny_task()
    assert plain.average is None
    assert plain.judged is plain.classifier


# Another image size.


@pytest.mark.parametrize("network", ["vit", "sincos", "convmae", "igpt"])
@pytest.mark.parametrize("factors", [(2, 2), (1, 2)])
def test_positions_follow_another_size_as_timm_resamples_them(network: str, factors: tuple[int, int]) -> None:
    pretrained = tiny_pretrained(NETWORKS[network])
    encoder = pretrained.encoder
    height, width = (pixels * factor for pixels, factor in zip(encoder.image_size, factors, strict=True))
    tuned = encoder_to_tune(pretrained, replace(BARE, image_height=height, image_width=width))
    assert tuned.image_size == (height, width)
    grid = [cells * factor for cells, factor in zip(encoder.grid, factors, strict=True)]
    expected = resample_abs_pos_embed(
        encoder.network.get_parameter("pos_embed").detach(),
        new_size=grid,
        old_size=list(encoder.grid),
        num_prefix_tokens=encoder.prefix,
    )
    found = tuned.network.get_parameter("pos_embed")
    torch.testing.assert_close(found.detach(), expected)
    assert found.requires_grad
    images = torch.randn(2, 3, height, width)
    assert Classifier(tuned, BARE, K)(images).shape == (2, K)
    # Features of a network without a change of its own are those that it gave for this size before.
    if network in ("vit", "sincos"):
        again = encoder_to_tune(pretrained, replace(BARE, image_height=height, image_width=width)).eval()
        with torch.no_grad():
            torch.testing.assert_close(again(images), encoder(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", ["relative", "beit", "eva02", "resnet18", "convnext_atto"])
def test_networks_without_absolute_positions_take_another_size(network: str) -> None:
    config = NETWORKS[network]
    task = tiny_task(replace(BARE, image_height=2 * config.image_height), config)
    size = (2 * config.image_height, config.image_width)
    assert task.classifier.encoder.image_size == size
    assert (task.crops[0].height, task.crops[0].width) == size
    assert torch.isfinite(task(batch_of(size))["class"])
    if network == "relative":
        # A grid of 8 x 4 patches: offsets of rows -7 to 7, of columns -3 to 3, and three kinds with the class token.
        table = cast(Any, task.classifier.encoder.network).blocks[0].attn.relative_position_bias_table
        assert len(table) == 15 * 7 + 3


# What is refused.

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mix_probability": 1.5}, "mix_probability must lie in [0, 1], got 1.5"),
    ({"smoothing": -0.1}, "smoothing must lie in [0, 1], got -0.1"),
    ({"erasing": 2.0}, "erasing must lie in [0, 1], got 2.0"),
    ({"flip": math.nan}, "flip must lie in [0, 1], got nan"),
    ({"mixup": -1.0}, "mixup and cutmix must be 0 or more, got -1.0 and 1.0"),
    ({"cutmix": -2.0}, "mixup and cutmix must be 0 or more, got 0.8 and -2.0"),
    ({"crop_scale": (0.5, 0.4)}, "crop scale must be a range within (0, 1], got 0.5 to 0.4"),
    ({"crop_scale": (0.0, 1.0)}, "crop scale must be a range within (0, 1], got 0.0 to 1.0"),
    ({"drop_path": 1.0}, "drop path must lie in [0, 1), got 1.0"),
    ({"layer_decay": 0.0}, "layer decay must lie in (0, 1], got 0.0"),
    ({"average": 1.0}, "the momentum of averaged weights must lie in [0, 1), got 1.0"),
    ({"test_crop": 0.0}, "test_crop must lie in (0, 1], got 0.0"),
    ({"tuned_blocks": -1}, "the number of blocks to tune must be 0 or more, got -1"),
    ({"head_std": 0.0}, "the deviation of the head's weights must be above 0, got 0.0"),
    ({"randaugment": "rand-mild"}, "timm knows no RandAugment policy 'rand-mild'; an example is rand-m9-mstd0.5-inc1"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        ClassifierConfig(**changes)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("wrong", [{"sigma": -1.0}, {"copies": 0}, {"consistency": -1.0}, {"entropy": -0.5}])
def test_noise_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    values = {"sigma": 0.0, "copies": 2, "consistency": 2.0, "entropy": 0.5} | wrong
    with pytest.raises(ValueError, match=r".") as caught:
        NoiseConfig(**wrong)
    assert str(caught.value) == (
        "noise needs a deviation of 0 or more, one copy or more and weights of 0 or more, got "
        f"{values['sigma']}, {values['copies']}, {values['consistency']} and {values['entropy']}"
    )


def test_what_does_not_fit_the_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^image height 36 is not divisible by the patch size 8$"):
        tiny_task(replace(BARE, image_height=36))
    with pytest.raises(ValueError, match=r"^image width 0 is not divisible by the patch size 8$"):
        tiny_task(replace(BARE, image_width=0))
    with pytest.raises(ValueError, match=r"^this encoder has no class token; pool by mean$"):
        tiny_task(replace(BARE, pooling="class"), NETWORKS["convmae"])
    with pytest.raises(
        ValueError, match=r"^training against noise is for images with one class each, not for several$"
    ):
        tiny_task(replace(BARE, noise=NoiseConfig(sigma=0.1)), targets_NK=torch.zeros(3, K))


def test_whether_images_are_mixed() -> None:
    assert ClassifierConfig().mixes
    assert replace(BARE, cutmix=0.5).mixes
    assert not BARE.mixes
    assert not ClassifierConfig(mix_probability=0.0).mixes
