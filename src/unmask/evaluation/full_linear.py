"""MAE's linear probe: a linear head on a frozen encoder, trained on fresh crops of the images at every epoch.

He et al. 2022, appendix A.2 and table 10. Shape legend: B images, C channels, H x W pixels, D dimensions, K
classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Doc

from unmask.data.batch import CropConfig
from unmask.data.loader import CropLoader
from unmask.data.sources import Source
from unmask.evaluation.features import FeatureExtractor, check_finite, dense_labels, extract
from unmask.evaluation.lars import build_lars
from unmask.evaluation.linear import NORM_EPS, SCORED_AT_ONCE, LinearResult, ProbeEpoch
from unmask.evaluation.metrics import rank_classes, score_ranking
from unmask.schedule import Schedule, warmup_then
from unmask.views import random_flip

# In smaller batches, batch norm and the biases, whose steps LARS does not scale, would follow the noise.
SMALL_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class FullLinearConfig:
    """The full linear probe. Defaults are MAE's for ImageNet, which `min_steps` leaves as they are."""

    epochs: Annotated[int, Doc("Epochs of training. [MAE: 90]")] = 90
    warmup_epochs: Annotated[float, Doc("Epochs of linear warm-up; at most a fifth of the run is used. [MAE: 10]")] = (
        10.0
    )
    batch_size: Annotated[int, Doc("Images of one optimizer step. [MAE: 16384]")] = 16384
    device_batch: Annotated[
        int,
        Doc("Images that pass the encoder, and share batch norm's statistics, at once. [MAE: 512 on each GPU]"),
    ] = 512
    min_steps: Annotated[
        int,
        Doc("Steps of an epoch at least: small train sets have smaller batches, down to 256. [MAE has 78]"),
    ] = 20
    base_lr: Annotated[
        float,
        Doc("The peak learning rate is this x batch_size / 256, also where min_steps lowers the batch. [MAE]"),
    ] = 0.1
    momentum: Annotated[float, Doc("LARS's momentum. [MAE: 0.9]")] = 0.9
    crop_scale: Annotated[tuple[float, float], Doc("Range of the cropped share of the image's area. [MAE]")] = (
        0.08,
        1.0,
    )
    flip: Annotated[float, Doc("Probability of a horizontal flip. [MAE: 0.5]")] = 0.5

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.min_steps < 1:
            raise ValueError(
                f"a linear probe needs at least one epoch of one step, got {self.epochs} and {self.min_steps}"
            )
        if self.batch_size < 2 or self.device_batch < 2:
            raise ValueError(
                "batch norm needs at least two images at once, got batches of "
                f"{self.batch_size} and {self.device_batch} on the device"
            )

    @property
    def peak_lr(self) -> float:
        """Peak learning rate.

        A batch lowered for a small train set does not lower it. LARS moves weights by a share of their
        length, about rate / 100 at each step with momentum, so the scaled rate would leave the head where it
        started.
        """
        return self.base_lr * self.batch_size / 256

    def batches(self, images: int) -> tuple[int, int]:
        """For a train set of so many images: how many pass at once, and how many such batches make a step."""
        wanted = min(self.batch_size, images, max(SMALL_BATCH, images // self.min_steps))
        at_once = min(self.device_batch, wanted)
        return at_once, wanted // at_once


def full_linear(
    extractor: FeatureExtractor,
    train: Source,
    test: Source,
    config: FullLinearConfig,
    *,
    height: int,
    width: int,
    channels: int,
    seed: int,
    workers: int,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[ProbeEpoch], None] | None = None,
) -> LinearResult:
    """Train a linear head on crops of `train` seen through the frozen `extractor`; score it on `test`.

    Crops are random, resized to height x width and flipped at random. Features change with every crop, so
    batch norm without affine stands before the head as in MAE: statistics of the batch in training, running
    ones for the test images. The head lives on `device`. `on_epoch` hears of every epoch when it ends. Raises
    ValueError for sources without labels or with classes that do not match, and for features with NaN.
    """
    train_labels = None if train.labels is None else torch.from_numpy(train.labels)
    test_labels = None if test.labels is None else torch.from_numpy(test.labels)
    # Matching the classes before the encoder runs lets a mistake show at once.
    labels_N, test_labels_M, class_count = dense_labels(train_labels, test_labels, train.classes, test.classes)
    at_once, accumulate = config.batches(len(labels_N))
    tested = extract(
        extractor, test, height=height, width=width, channels=channels, batch_size=at_once, workers=workers
    )
    check_finite(tested.x_ND)
    generator = torch.Generator().manual_seed(seed)
    head = _build_head(tested.x_ND.shape[1], class_count, generator).to(device)
    optimizer = build_lars(head.parameters(), lr=0.0, momentum=config.momentum)
    steps = max(1, len(labels_N) // (at_once * accumulate))
    loader = CropLoader(
        train,
        crops=(CropConfig(height=height, width=width, scale=config.crop_scale),),
        batch_size=at_once,
        total_steps=config.epochs * steps * accumulate,
        seed=seed,
        workers=workers,
        channels=channels,
    )
    batches = iter(loader)
    curve = []
    for epoch in range(config.epochs):
        loss_sum, right, seen = 0.0, 0, 0
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, (epoch + step / steps) / config.epochs)
            optimizer.zero_grad(set_to_none=True)
            for _ in range(accumulate):
                batch = next(batches)
                with torch.no_grad():
                    x_BD = extractor(random_flip(batch.crops[0][:, 0], generator, config.flip))
                check_finite(x_BD)
                labels_B = labels_N[batch.indices].to(device)
                logits_BK = head(x_BD.to(device))
                loss = F.cross_entropy(logits_BK, labels_B)
                (loss / accumulate).backward()
                loss_sum += loss.item() * len(labels_B)
                right += int((logits_BK.argmax(dim=1) == labels_B).sum())
                seen += len(labels_B)
            optimizer.step()
        curve.append(ProbeEpoch(epoch, loss_sum / seen, 100 * right / seen))
        if on_epoch is not None:
            on_epoch(curve[-1])
    ranked_MR = _rank(head, tested.x_ND, device)
    score = score_ranking(ranked_MR, test_labels_M[tested.indices_N], class_count=class_count)
    return LinearResult(score=score, lr=config.peak_lr, curve=tuple(curve))


def _build_head(dimensions: int, class_count: int, generator: torch.Generator) -> nn.Sequential:
    """Batch norm without affine, then a linear layer as MAE starts it (at zero LARS would not scale)."""
    # The usual initial values would be drawn from torch's global state, only to be overwritten.
    linear = nn.utils.skip_init(nn.Linear, dimensions, class_count)
    nn.init.trunc_normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(dimensions, eps=NORM_EPS, affine=False), linear)


def learning_rate(config: FullLinearConfig, progress: float) -> float:
    """MAE's rate for every step: linear warm-up from 0, then half a cosine to 0."""
    # A warm-up made for 90 epochs would swallow a short run.
    warmup = min(config.warmup_epochs / config.epochs, 0.2)
    after = Schedule(kind="cosine", start=config.peak_lr, end=0.0)
    return warmup_then(progress, warmup=warmup, start=0.0, peak=config.peak_lr, after=after)


@torch.no_grad()
def _rank(head: nn.Sequential, x_MD: Float[Tensor, "M D"], device: torch.device | str) -> Int64[Tensor, "M R"]:
    """Classes of test features, best first, under the head's running statistics."""
    head.eval()
    chunks = x_MD.split(SCORED_AT_ONCE)
    return torch.cat([rank_classes(head(chunk_BD.to(device)).cpu()) for chunk_BD in chunks])
