"""A segmenter learns real photos, trains what it should and nothing else, and looks at images of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coin_tiles import CLASSES, CoinTiles
from unmask.data.annotated import IGNORE
from unmask.data.segmentation_crops import SegmentationBatch, SegmentationCropConfig, segmentation_loader
from unmask.evaluation.segmentation import evaluate_segmentation
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder
from unmask.optimisation import OptimizerConfig
from unmask.tasks.segmentation import (
    SegmentationConfig,
    SegmentationTask,
    SegmentationViews,
    Segmenter,
    pixel_loss,
    segment,
    segmenter_on,
    usual_decoder_width,
)
from unmask.tasks.segmentation_file import finished_segmenter
from unmask.training.trainer import Trainer, TrainingConfig

TINY = EncoderConfig(
    name="vit_tiny_patch16_224", image_height=64, image_width=64, patch_size=8, width=48, depth=4, heads=3
)
QUICK = SegmentationConfig(
    drop_path=0.0,
    optimizer=OptimizerConfig(lr=2e-3, lr_batch=None, betas=(0.9, 0.999), warmup_epochs=1, decay="linear"),
)


def pretrained(config: EncoderConfig = TINY) -> PretrainedEncoder:
    """A random encoder, always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_encoder(config, mask_token=False)
    return PretrainedEncoder(encoder=encoder, mean=(0.4,) * 3, std=(0.3,) * 3, origin="test")


def task_on(config: SegmentationConfig, encoder: EncoderConfig = TINY) -> SegmentationTask:
    torch.manual_seed(1)
    return SegmentationTask(pretrained(encoder), config, CLASSES)


def trained(config: SegmentationConfig, steps: int) -> tuple[SegmentationTask, list[float]]:
    """A task after some steps on eight coin tiles, and the loss of every step."""
    source, task = CoinTiles(tuple(range(8))), task_on(config)
    loader = segmentation_loader(
        source, task.crop, config.crops, mean=task.mean, first=0, last=steps, batch_size=4, seed=0, workers=0
    )
    options = TrainingConfig(epochs=steps / loader.steps_per_epoch, batch_size=4, workers=0)
    trainer = Trainer(task, options, steps_per_epoch=loader.steps_per_epoch, device=torch.device("cpu"))
    return task, [trainer.train_step([batch]).loss for batch in loader]


def some_batch(count: int = 2) -> SegmentationBatch:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(2, (count, 64, 64), generator=generator, dtype=torch.uint8)
    masks[:, :9] = IGNORE
    images = torch.randint(256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return SegmentationBatch(images, masks, torch.arange(count), seed=0)


def test_it_learns_real_photos() -> None:
    task, losses = trained(QUICK, 24)
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])
    source = CoinTiles(tuple(range(8)))
    score = evaluate_segmentation(finished_segmenter(task), source, workers=0)
    truth = np.concatenate([mask[mask != IGNORE] for mask in source.masks])
    # Calling all of it table gives table its share, and coins nothing.
    majority = 100 * (truth == 0).mean() / 2
    assert majority < 40
    assert score.mean_iou > 85
    # What it has learnt are coins, not these eight tiles.
    assert evaluate_segmentation(finished_segmenter(task), CoinTiles(tuple(range(8, 18))), workers=0).mean_iou > 75


def test_two_runs_with_one_seed_agree() -> None:
    (first, losses), (second, again) = (trained(replace(QUICK, drop_path=0.2), 3) for _ in range(2))
    assert losses == again
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_everything_gets_a_gradient_but_the_norm_that_has_no_part() -> None:
    task = task_on(QUICK).train()
    losses = task(some_batch())
    assert list(losses) == ["segmentation", "auxiliary"]
    sum(losses.values()).backward()
    without = {name for name, parameter in task.named_parameters() if parameter.grad is None}
    assert without == {f"segmenter.pyramid.encoder.vit.norm.{part}" for part in ("weight", "bias")}
    # A dead unit would have a gradient of zeros.
    gradients = {name: parameter.grad for name, parameter in task.named_parameters() if parameter.grad is not None}
    dead = [name for name, gradient in gradients.items() if not gradient.any()]
    assert dead == []


def test_a_frozen_encoder_stays_as_it_is() -> None:
    task, _ = trained(replace(QUICK, frozen_encoder=True, drop_path=0.5), 3)
    encoder = task.segmenter.encoder
    assert task.training
    assert not any(part.training for part in encoder.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in encoder.parameters())
    for name, value in pretrained().encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name]), name
    fresh, decoder = task_on(QUICK).segmenter.decoder, task.segmenter.decoder
    moved = [name for name, value in fresh.named_parameters() if value.ne(decoder.get_parameter(name)).any()]
    assert len(moved) == len(list(decoder.parameters()))


def test_the_encoder_given_is_copied_not_trained() -> None:
    start = pretrained()
    before = {name: value.clone() for name, value in start.encoder.state_dict().items()}
    task = SegmentationTask(start, QUICK, CLASSES)
    assert task.segmenter.encoder is not start.encoder
    for parameter in task.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in start.encoder.state_dict().items())


def test_layers_learn_at_the_rates_of_beit() -> None:
    task = task_on(replace(QUICK, layer_decay=0.5))
    scales = {name: task.rule(name, parameter).lr_scale for name, parameter in task.named_parameters()}
    for block in range(4):
        assert scales[f"segmenter.pyramid.encoder.vit.blocks.{block}.mlp.fc1.weight"] == 0.5 ** (4 - block)
    assert scales["segmenter.pyramid.encoder.vit.patch_embed.proj.weight"] == 0.5**5
    new = {scale for name, scale in scales.items() if ".encoder." not in name}
    assert new == {1.0}
    assert not task.rule("segmenter.classifier.bias", torch.zeros(2)).decay
    assert task.rule("segmenter.classifier.weight", torch.zeros(2, 2, 1, 1)).decay


def test_defaults_are_beits() -> None:
    config = SegmentationConfig()
    settings = config.optimizer
    # 160k steps of 16 of ADE20K's 20,210 training images.
    epochs = 160_000 * 16 / 20_210
    assert settings.at(1500 / 160_000, batch_size=16, epochs=epochs) == pytest.approx(7e-4, rel=0.02)
    assert settings.at(750 / 160_000, batch_size=16, epochs=epochs) == pytest.approx(3.5e-4, rel=0.02)
    assert settings.at(80_750 / 160_000, batch_size=16, epochs=epochs) == pytest.approx(3.5e-4, rel=0.01)
    assert settings.at(1, batch_size=16, epochs=epochs) == pytest.approx(0)
    assert (config.layer_decay, config.drop_path, config.auxiliary) == (0.65, 0.1, 0.4)


def test_the_decoder_is_as_wide_as_the_encoder_deserves() -> None:
    widths = (192, 384, 768, 1024, 2048)
    assert [usual_decoder_width(width) for width in widths] == [128, 256, 512, 512, 512]
    assert segmenter_on(pretrained(), QUICK, 2).classifier.in_channels == 32
    assert segmenter_on(pretrained(), replace(QUICK, decoder_width=20), 2).classifier.in_channels == 20


def test_crops_follow_the_configuration_and_positions_the_crops() -> None:
    task = task_on(replace(QUICK, image_height=80, image_width=48, drop_path=0.3))
    assert task.crop == (80, 48)
    encoder = task.segmenter.encoder
    assert encoder.config.drop_path == 0.3
    assert encoder.state_dict()["vit.pos_embed"].shape == (1, 10 * 6 + 1, 48)
    with pytest.raises(ValueError, match="image height 81 is not divisible by the patch size 8"):
        task_on(replace(QUICK, image_height=81))


def test_tables_of_relative_positions_become_each_blocks_own() -> None:
    relative = replace(TINY, position="relative")
    assert task_on(QUICK, relative).segmenter.encoder.config.position == "relative_blocks"
    assert task_on(replace(QUICK, own_tables=False), relative).segmenter.encoder.config.position == "relative"


def test_losses_are_the_mean_over_pixels_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 6, generator=generator)
    targets = torch.randint(3, (2, 5, 6), generator=generator)
    targets[0, :3] = IGNORE
    log_probabilities = logits.log_softmax(dim=1)
    expected = -np.mean(
        [
            float(log_probabilities[b, int(targets[b, y, x]), y, x])
            for b in range(2)
            for y in range(5)
            for x in range(6)
            if int(targets[b, y, x]) != IGNORE
        ]
    )
    assert float(pixel_loss(logits, targets)) == pytest.approx(expected, rel=1e-5)
    nothing = pixel_loss(logits.requires_grad_(), torch.full_like(targets, IGNORE))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_auxiliary_loss_has_its_weight_or_is_not_there() -> None:
    task = task_on(QUICK).eval()
    views = task.make_views(some_batch())
    assert isinstance(views, SegmentationViews)
    pixels = some_batch().images.float() / 255
    torch.testing.assert_close(views.images, (pixels - 0.4) / 0.3)
    with torch.no_grad():
        losses = task.losses(views)
        third = task.segmenter.pyramid(views.images)[2]
        assert task.auxiliary is not None
        logits = nn.functional.interpolate(task.auxiliary(third), size=(64, 64), mode="bilinear", align_corners=False)
    expected = nn.functional.cross_entropy(logits, views.masks.long(), ignore_index=IGNORE)
    assert float(losses["auxiliary"]) == pytest.approx(0.4 * float(expected), rel=1e-5)
    alone = task_on(replace(QUICK, auxiliary=0.0))
    assert alone.auxiliary is None
    assert list(alone.eval().losses(views)) == ["segmentation"]


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a segmenter is trained on batches \(or their parts\) of 2 images or more"):
        task_on(QUICK).train()(some_batch(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SegmentationConfig(decoder_width=0), "the decoder's width must be at least 1, got 0"),
        (lambda: SegmentationConfig(auxiliary=-1), "weight of the auxiliary loss must be 0 or more, got -1"),
        (lambda: SegmentationConfig(drop_path=1.0), r"drop path must lie in \[0, 1\), got 1.0"),
        (lambda: SegmentationConfig(layer_decay=0.0), r"layer decay must lie in \(0, 1\], got 0.0"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


class Marks(Segmenter):
    """Stands for a segmenter: logits that depend on where a pixel lies in its window of 24 x 40."""

    def __init__(self) -> None:
        small = replace(TINY, image_height=24, image_width=40, depth=1)
        super().__init__(build_encoder(small, mask_token=False), 2, decoder_width=8)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        place = torch.arange(images.shape[2] * images.shape[3]).reshape(images.shape[2:]).float()
        return torch.stack([images[:, 0], images[:, 0] * place], dim=1)


@pytest.fixture(scope="module")
def marks() -> Marks:
    return Marks()


def windows(size: int, window: int) -> Iterator[int]:
    """mmsegmentation's slide_inference, word for word, along one side."""
    stride = window * 2 // 3
    for index in range(max(size - window + stride - 1, 0) // stride + 1):
        end = min(index * stride + window, size)
        yield max(end - window, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 120))
def test_sliding_windows_are_mmsegmentations(marks: Marks, height: int, width: int) -> None:
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) + 0.5
    found = segment(marks, image, "slide")
    padded = torch.zeros(3, max(height, 24), max(width, 40))
    padded[:, :height, :width] = image
    sums, counts = torch.zeros(2, *padded.shape[1:]), torch.zeros(padded.shape[1:])
    place = torch.arange(24 * 40).reshape(24, 40)
    for top in windows(padded.shape[1], 24):
        for left in windows(padded.shape[2], 40):
            cut = padded[0, top : top + 24, left : left + 40]
            sums[:, top : top + 24, left : left + 40] += torch.stack([cut, cut * place])
            counts[top : top + 24, left : left + 40] += 1
    assert counts.min() > 0
    torch.testing.assert_close(found, (sums / counts)[:, :height, :width])
    assert all(shape[1:] == (3, 24, 40) and shape[0] <= 4 for shape in marks.seen)


def small_segmenter(config: EncoderConfig = TINY) -> Segmenter:
    torch.manual_seed(0)
    return segmenter_on(pretrained(config), QUICK, 3).eval()


@pytest.mark.parametrize("mode", ["slide", "whole"])
@torch.no_grad()
def test_an_image_of_the_crops_size_is_seen_once(mode: str) -> None:
    segmenter = small_segmenter()
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(segment(segmenter, image, mode), segmenter(image[None])[0])  # type: ignore[arg-type]


@torch.no_grad()
def test_whole_images_are_padded_to_patches_and_cut_again() -> None:
    segmenter = small_segmenter()
    image = torch.randn(3, 77, 92, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(3, 80, 96)
    padded[:, :77, :92] = image
    found = segment(segmenter, image, "whole")
    torch.testing.assert_close(found, segmenter(padded[None])[0, :, :77, :92])
    assert found.dtype == torch.float32


def test_whole_images_are_refused_where_positions_hold_for_one_size() -> None:
    segmenter = small_segmenter(replace(TINY, position="relative"))
    image = torch.zeros(3, 77, 92)
    with pytest.raises(ValueError, match=r"hold for images of 64x64 alone: test with sliding windows, not with whole"):
        segment(segmenter, image, "whole")
    assert segment(segmenter, image, "slide").shape == (3, 77, 92)
    assert segment(segmenter, image[:, :64, :64], "whole").shape == (3, 64, 64)


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(name="convmae_tiny_patch16", image_height=32, image_width=32, depth=1),
        EncoderConfig(name="resnet18", image_height=64, image_width=64),
        EncoderConfig(name="igpt_tiny", image_height=16, image_width=16, patch_size=4, width=48, depth=2, heads=3),
    ],
    ids=lambda config: config.name,
)
def test_other_encoders_learn_too(config: EncoderConfig) -> None:
    task = task_on(replace(QUICK, drop_path=0.1), config).train()
    side = task.crop[0]
    batch = some_batch()
    batch = replace(batch, images=batch.images[:, :, :side, :side], masks=batch.masks[:, :side, :side])
    sum(task(batch).values()).backward()
    grown = [name for name, parameter in task.segmenter.encoder.named_parameters() if parameter.grad is not None]
    assert grown
    finished_segmenter(task).segmenter.eval()
    assert segment(task.segmenter, torch.zeros(3, 70, 50)).shape == (2, 70, 50)


def test_the_crops_configuration_is_part_of_it() -> None:
    assert SegmentationConfig().crops == SegmentationCropConfig(scale=(0.5, 2.0), largest_class=0.75, flip=0.5)
