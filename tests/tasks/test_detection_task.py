"""Detectors learn from real photos, every weight of theirs does, and equal seeds give equal detectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from coin_things import CoinParts
from tiny_detectors import TINY_DETECTION, tiny_detection, tiny_pretrained, with_encoder
from unmask.data.detection import DetectionBatch, Fit, Target, detection_loader
from unmask.evaluation.detection import evaluate_detection
from unmask.models.simple_pyramid import LEVELS
from unmask.optimisation import OptimizerConfig
from unmask.tasks.detection import (
    Anchors,
    DetectionConfig,
    Detections,
    DetectionTask,
    Detector,
    DetectorConfig,
    put_back,
    warmed_up,
)
from unmask.tasks.detection_file import finished_detector
from unmask.training.trainer import Trainer, TrainingConfig

LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}


def train(task: DetectionTask, source: CoinParts, steps: int, *, precision: str = "fp32") -> list[dict[str, float]]:
    """Steps on all images at once; the losses of each."""
    trainer = Trainer(
        task,
        TrainingConfig(epochs=float(steps), batch_size=len(source), workers=0, precision=cast(Any, precision)),
        steps_per_epoch=1,
        device=torch.device("cpu"),
    )
    loader = detection_loader(
        source,
        task.canvas,
        task.config.jitter,
        mean=task.mean,
        first=0,
        last=steps,
        batch_size=len(source),
        seed=0,
        workers=0,
    )
    return [trainer.train_step([batch]).losses for batch in loader]


def batch_of(targets: list[Target], size: tuple[int, int] = (64, 80), channels: int = 1) -> DetectionBatch:
    generator = torch.Generator().manual_seed(0)
    shape = (len(targets), channels, *size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return DetectionBatch(images, tuple(targets), torch.arange(len(targets)), seed=1)


def thing(*boxes: tuple[float, float, float, float], size: tuple[int, int] = (64, 80), outlines: bool = True) -> Target:
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = 1
    return Target(
        boxes_K4=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels_K=torch.zeros(len(boxes), dtype=torch.int64),
        masks_KHW=masks if outlines else None,
    )


def test_a_tiny_vit_learns_to_find_and_outline_real_coins() -> None:
    coins = CoinParts((1, 2, 3, 4))
    task = tiny_detection()
    losses = train(task, coins, 50)
    # The loss of boxes is small while hardly any is taken for a coin.
    for name in ("loss_objectness", "loss_classifier", "loss_mask"):
        assert losses[-1][name] < 0.7 * losses[0][name]
    score = evaluate_detection(finished_detector(task), coins, batch_size=4, workers=0)
    assert score.things == 12
    assert score.boxes.ap50 > 50
    assert score.masks is not None
    assert score.masks.ap50 > 40


def test_two_trainings_with_one_seed_agree_and_another_seed_differs() -> None:
    first, again, other = (tiny_detection(seed=seed) for seed in (0, 0, 1))
    for task in (first, again, other):
        train(task, CoinParts((3, 4)), 3)
    states = [task.state_dict() for task in (first, again, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_what_is_learnt_from_follows_from_torchs_global_seed() -> None:
    task = tiny_detection().train()
    views = task.make_views(batch_of([thing((5, 5, 40, 40), (30, 20, 60, 50))]))
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append({name: loss.item() for name, loss in task.losses(views).items()})
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("outlines", [True, False])
@pytest.mark.parametrize(
    "encoder",
    [
        with_encoder(),
        with_encoder(position="relative"),
        with_encoder(name="eva02_tiny_patch14_224"),
        with_encoder(position="sincos", class_token=False),
    ],
    ids=["learned", "relative", "rotary", "sincos"],
)
def test_every_trainable_weight_gets_a_gradient(encoder: Any, outlines: bool) -> None:
    task = tiny_detection(encoder=encoder, outlines=outlines).train()
    # Boxes of every size, so that every map of the pyramid is cut from.
    boxes = [(2, 2, 8, 8), (10, 10, 30, 30), (4, 4, 70, 60), (0, 0, 80, 64), (40, 40, 52, 50)]
    views = task.make_views(batch_of([thing(*boxes, outlines=outlines)]))
    losses = task.losses(views)
    assert set(losses) == LOSSES - (set() if outlines else {"loss_mask"})
    torch.stack(list(losses.values())).sum().backward()
    without = {
        name
        for name, value in task.named_parameters()
        if value.requires_grad and (value.grad is None or not value.grad.any())
    }
    # Windows see no class token, and some tables of positions belong to it alone.
    assert {name for name in without if not name.endswith("cls_token")} == set()


@pytest.mark.parametrize("outlines", [True, False])
@pytest.mark.parametrize("counts", [(0, 2), (0, 0)], ids=["one image without things", "none has any"])
def test_images_without_things_can_be_learnt_from(counts: tuple[int, ...], outlines: bool) -> None:
    task = tiny_detection(outlines=outlines).train()
    boxes = [(5.0, 5.0, 40.0, 40.0), (30.0, 20.0, 60.0, 50.0)]
    losses = task(batch_of([thing(*boxes[:count], outlines=outlines) for count in counts]))
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    gradients = [value.grad for value in task.parameters() if value.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_a_detector_learns_in_bfloat16_with_boxes_in_float32() -> None:
    task = tiny_detection()
    losses = train(task, CoinParts((3, 4)), 4, precision="bf16")
    assert all(np.isfinite(list(step.values())).all() for step in losses)
    full = train(tiny_detection(), CoinParts((3, 4)), 4)
    assert sum(losses[0].values()) == pytest.approx(sum(full[0].values()), rel=0.05)
    detector = task.detector.train()
    with torch.autocast("cpu", torch.bfloat16):
        maps = detector.pyramid(torch.randn(1, 1, 64, 80))
        images = ImageList(torch.zeros(1, 1, 64, 80), [(64, 80)])
        detector.eval()
        proposals, _ = detector.rcnn.rpn(images, maps, None)
        found, _ = detector.rcnn.roi_heads(maps, proposals, [(64, 80)], None)
    assert proposals[0].dtype == found[0]["boxes"].dtype == found[0]["masks"].dtype == torch.float32
    # In bfloat16 all numbers above 32 are whole quarters.
    large = proposals[0][proposals[0] > 32]
    assert float((large * 4 % 1 != 0).float().mean()) > 0.5


def test_a_frozen_encoder_stays_as_it_is() -> None:
    config = replace(TINY_DETECTION, frozen_encoder=True, drop_path=0.5)
    task = tiny_detection(config)
    before = {name: value.clone() for name, value in task.detector.encoder.state_dict().items()}
    train(task, CoinParts((3, 4)), 2)
    assert not task.detector.encoder.training
    assert all(torch.equal(value, before[name]) for name, value in task.detector.encoder.state_dict().items())
    assert not any(value.requires_grad for value in task.detector.encoder.parameters())
    images = torch.randn(2, 1, 64, 80)
    assert torch.equal(task.detector.pyramid.last_map(images), task.detector.pyramid.last_map(images))


def test_batch_norm_of_a_convolutional_encoder_keeps_its_statistics() -> None:
    encoder = with_encoder(
        name="resnet18", image_height=64, image_width=96, patch_size=None, width=None, depth=None, heads=None
    )
    task = tiny_detection(encoder=encoder)
    before = {name: value.clone() for name, value in task.named_buffers() if "running" in name}
    assert before
    train(task, CoinParts((3, 4)), 2)
    assert all(torch.equal(value, before[name]) for name, value in task.named_buffers() if "running" in name)
    score = evaluate_detection(finished_detector(task), CoinParts((3, 4)), batch_size=2, workers=0)
    assert score.n == 2


def test_the_encoder_is_a_copy_that_is_tuned_as_vitdet_does() -> None:
    pretrained = tiny_pretrained(with_encoder(position="sincos"))
    before = {name: value.clone() for name, value in pretrained.encoder.state_dict().items()}
    config = replace(
        TINY_DETECTION, drop_path=0.3, layer_decay=0.7, image_height=96, image_width=128, checkpointing=True
    )
    torch.manual_seed(0)
    task = DetectionTask(pretrained, config, ("coin",), outlines=True)
    encoder = task.detector.encoder
    assert task.canvas == encoder.image_size == (96, 128)
    assert encoder.config.drop_path == 0.3
    assert encoder.config.checkpointing
    assert pretrained.encoder.image_size == (64, 80)
    train(task, CoinParts((3, 4)), 1)
    assert all(torch.equal(value, before[name]) for name, value in pretrained.encoder.state_dict().items())
    rules = {name: task.rule(name, value) for name, value in task.named_parameters() if value.requires_grad}
    inside = "detector.rcnn.backbone.encoder.vit."
    assert rules[f"{inside}blocks.0.attn.qkv.weight"].lr_scale == pytest.approx(0.7**4)
    assert rules[f"{inside}blocks.3.attn.qkv.weight"].lr_scale == pytest.approx(0.7)
    assert rules[f"{inside}pos_embed"].lr_scale == pytest.approx(0.7**5)
    assert rules["detector.rcnn.backbone.stages.0.0.weight"].lr_scale == 1
    assert rules["detector.rcnn.rpn.head.head.cls_logits.weight"].decay
    assert not rules["detector.rcnn.rpn.head.head.cls_logits.bias"].decay
    assert task.optimizer_config is config.optimizer


def test_vitdets_sizes_are_those_of_a_base_vit_at_1024_pixels() -> None:
    with torch.device("meta"):
        task = tiny_detection(
            DetectionConfig(image_height=1024, image_width=1024),
            encoder=with_encoder(
                name="vit_base_patch16_224",
                image_height=224,
                image_width=224,
                patch_size=16,
                channels=3,
                width=None,
                depth=None,
                heads=None,
            ),
            classes=tuple(map(str, range(80))),
        )
    parts = task.detector.rcnn
    heads = parts.roi_heads
    assert heads.box_predictor.head.bbox_pred.weight.shape == (4 * 81, 1024)
    assert heads.mask_predictor.head.mask_fcn_logits.weight.shape == (81, 256, 1, 1)
    assert sum(isinstance(module, nn.Conv2d) for module in heads.box_head.modules()) == 4
    assert sum(isinstance(module, nn.Conv2d) for module in heads.mask_head.modules()) == 4
    assert sum(isinstance(module, nn.Conv2d) for module in parts.rpn.head.modules()) == 4
    assert heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert task.config.optimizer.peak(64) == task.config.optimizer.peak(8) == 1e-4


@pytest.mark.parametrize("size", [(64, 80), (56, 88), (128, 128)])
def test_anchors_are_torchvisions_shifted_to_the_middle(size: tuple[int, int]) -> None:
    strides, sides = (2, 4, 8, 16, 32), (8.0, 16.0, 32.0, 64.0, 128.0)
    maps = [torch.zeros(2, 1, -(-size[0] // stride), -(-size[1] // stride)) for stride in strides]
    images = ImageList(torch.zeros(2, 1, *size), [size, size])
    found = Anchors(sides, (0.25, 1.0, 4.0), strides)(images, maps)
    assert len(found) == 2
    theirs = AnchorGenerator(tuple((side,) for side in sides), ((0.25, 1.0, 4.0),) * 5)
    theirs.set_cell_anchors(torch.float32, torch.device("cpu"))
    grids = theirs.grid_anchors([list(map_.shape[2:]) for map_ in maps], [[torch.tensor(s)] * 2 for s in strides])
    expected = torch.cat([grid + stride / 2 for grid, stride in zip(grids, strides, strict=True)])
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize(
    ("patch", "side", "expected"),
    [(16, 1024, (32, 64, 128, 256, 512)), (16, 224, (16, 32, 64, 128, 256)), (8, 384, (12, 24, 48, 96, 192))],
)
def test_anchors_are_vitdets_on_its_canvas_and_smaller_on_small_ones(
    patch: int, side: int, expected: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        task = tiny_detection(encoder=with_encoder(patch_size=patch, image_height=side // 2, image_width=side))
    encoder = task.detector.encoder
    with torch.device("cpu"):
        cells = Detector(encoder, DetectorConfig(), 1, outlines=False).rcnn.rpn.anchor_generator.cells
    areas = (cells[:, :, 2] - cells[:, :, 0]) * (cells[:, :, 3] - cells[:, :, 1])
    torch.testing.assert_close(areas, torch.tensor(expected)[:, None].float().square().expand(5, 3))
    ratios = (cells[:, :, 3] - cells[:, :, 1]) / (cells[:, :, 2] - cells[:, :, 0])
    torch.testing.assert_close(ratios, torch.tensor([0.5, 1.0, 2.0]).expand(5, 3))
    assert len(cells) == len(LEVELS)


def test_boxes_are_cut_where_they_are_whatever_the_patch() -> None:
    """A map that holds the position of each place tells where a box was cut from it."""
    task = tiny_detection(encoder=with_encoder(image_height=84, image_width=84, patch_size=14))
    pool = task.detector.rcnn.roi_heads.box_roi_pool
    maps = {}
    for name, stride in zip(LEVELS, task.detector.pyramid.strides, strict=True):
        places = torch.arange(int(np.ceil(84 / stride))) * stride
        maps[name] = torch.stack(torch.meshgrid(places, places, indexing="ij"))[None].float()
    for box in ([10.0, 20.0, 40.0, 44.0], [5.0, 5.0, 25.0, 20.0], [20.0, 8.0, 62.0, 60.0]):
        cut = pool(maps, [torch.tensor([box])], [(84, 84)])[0].mean(dim=(1, 2))
        middle = torch.tensor([(box[1] + box[3]) / 2, (box[0] + box[2]) / 2])
        torch.testing.assert_close(cut, middle, rtol=0, atol=0.1)


def ellipse(height: int, width: int, box: tuple[float, float, float, float]) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    radii = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    return ((columns - middle[0]) / radii[0]) ** 2 + ((rows - middle[1]) / radii[1]) ** 2 <= 1


@settings(max_examples=60, deadline=None)
@given(
    corner=st.tuples(st.floats(0, 40), st.floats(0, 40)),
    size=st.tuples(st.floats(3, 55), st.floats(3, 55)),
)
def test_what_training_cuts_out_is_put_back_where_it_was(
    corner: tuple[float, float], size: tuple[float, float]
) -> None:
    mask = ellipse(100, 96, (corner[0], corner[1], corner[0] + size[0], corner[1] + size[1]))
    assume(mask.any())
    rows, columns = mask.nonzero(as_tuple=True)
    box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    cut = project_masks_on_boxes(mask[None].to(torch.uint8), box[None], torch.zeros(1, dtype=torch.int64), 28)[0]
    back = put_back(cut, box, 100, 96) >= 0.5
    assert float((back & mask).sum() / (back | mask).sum()) > 0.95


def test_detections_are_in_pixels_of_the_original_image() -> None:
    """The same canvas read as an image of twice the height and three times the width."""
    task = tiny_detection()
    detector = task.detector.eval()
    images = torch.randn(1, 1, 64, 80)
    (near,) = detector.detect(images, [Fit(height=50, width=80, shown_height=50, shown_width=80)])
    (far,) = detector.detect(images, [Fit(height=100, width=240, shown_height=50, shown_width=80)])
    assert len(near.scores_K) > 0
    assert near.scores_K.diff().max() <= 0
    assert set(near.labels_K.tolist()) == {0}
    assert near.boxes_K4.min() >= 0
    assert near.boxes_K4[:, 2].max() <= 80
    assert near.boxes_K4[:, 3].max() <= 50, "boxes end where the image does, not where the canvas does"
    torch.testing.assert_close(near.boxes_K4 * torch.tensor([3.0, 2, 3, 2]), far.boxes_K4)
    assert torch.equal(near.scores_K, far.scores_K)
    masks = list(far.masks())
    assert len(masks) == len(far.scores_K)
    for mask, box in zip(masks, far.boxes_K4, strict=True):
        assert mask.shape == (100, 240)
        rows, columns = mask.nonzero(as_tuple=True)
        if len(rows):
            assert columns.min() + 0.5 >= box[0]
            assert rows.min() + 0.5 >= box[1]
            assert columns.max() + 0.5 <= box[2]
            assert rows.max() + 0.5 <= box[3]


def test_limits_on_what_is_shown_hold() -> None:
    few = replace(TINY_DETECTION, detector=replace(TINY_DETECTION.detector, detections=3))
    none = replace(TINY_DETECTION, detector=replace(TINY_DETECTION.detector, score_threshold=1.0))
    fit = Fit(height=64, width=80, shown_height=64, shown_width=80)
    images = torch.randn(1, 1, 64, 80)
    (found,) = tiny_detection(few).detector.eval().detect(images, [fit])
    assert len(found.scores_K) == 3
    (found,) = tiny_detection(none).detector.eval().detect(images, [fit])
    assert found.boxes_K4.shape == (0, 4)
    assert found.shapes_KMM is not None
    assert list(found.masks()) == []


def test_a_detector_without_outlines_gives_boxes_alone() -> None:
    config = replace(TINY_DETECTION, detector=replace(TINY_DETECTION.detector, outlines=False))
    detector = tiny_detection(config).detector.eval()
    assert not detector.outlines
    fit = Fit(height=64, width=80, shown_height=64, shown_width=80)
    (found,) = detector.detect(torch.randn(1, 1, 64, 80), [fit])
    assert isinstance(found, Detections)
    assert found.shapes_KMM is None


def test_a_detector_that_has_diverged_says_so() -> None:
    detector = tiny_detection().detector.eval()
    with torch.no_grad():
        detector.encoder.vit.blocks[0].mlp.fc1.weight.fill_(float("nan"))  # type: ignore[union-attr, operator, index]
    fit = Fit(height=64, width=80, shown_height=64, shown_width=80)
    with pytest.raises(ValueError, match=r"^the detector gives numbers that are NaN or infinite"):
        detector.detect(torch.randn(1, 1, 64, 80), [fit])


def test_warm_up_is_counted_in_steps() -> None:
    config = warmed_up(DetectionConfig(), steps_per_epoch=1000)
    assert config.optimizer.warmup_epochs == 0.25
    assert replace(config, optimizer=DetectionConfig().optimizer) == DetectionConfig()
    rate = config.optimizer.at(0.0025 / 2, batch_size=64, epochs=100)
    assert rate == pytest.approx(1e-4 * (0.001 + 0.999 / 2))
    assert config.optimizer.at(0.5, batch_size=64, epochs=100) == 1e-4
    assert config.optimizer.at(0.9, batch_size=64, epochs=100) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DetectorConfig(window=0), "window must be at least 1, got 0"),
        (lambda: DetectorConfig(detections=0), "detections must be at least 1, got 0"),
        (lambda: DetectorConfig(overlap=1.5), "overlap must lie in [0, 1], got 1.5"),
        (lambda: DetectorConfig(anchors=(8.0,)), "anchors must be 5 sides above 0, one for each map, got (8.0,)"),
        (lambda: DetectorConfig(ratios=()), "ratios must be one number above 0 or more, got ()"),
        (lambda: DetectionConfig(drop_path=1.0), "drop path must lie in [0, 1), got 1.0"),
        (lambda: DetectionConfig(layer_decay=0.0), "layer decay must lie in (0, 1], got 0.0"),
        (
            lambda: tiny_detection(replace(TINY_DETECTION, image_height=65)),
            "image height 65 is not divisible by the patch size 8",
        ),
        (lambda: OptimizerConfig(lr=-1), "lr must be 0 or more, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^") as caught:
        make()
    assert str(caught.value) == message
