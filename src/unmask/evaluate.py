"""Evaluations of an encoder beside its floors: raw pixels, and the same encoder at its random start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Literal

import torch
from scipy.stats import t as student
from threadpoolctl import threadpool_limits
from torch import Tensor

from unmask.data.multilabel import MultiLabelSource
from unmask.data.pixel_range import in_range
from unmask.data.sources import Source
from unmask.data.statistics import first_readable
from unmask.evaluation.augmented import ViewConfig, view_features
from unmask.evaluation.features import FeatureExtractor, Features, pixel_extractor
from unmask.evaluation.fewshot import FewShotConfig, FewShotResult, few_shot
from unmask.evaluation.full_linear import FullLinearConfig, full_linear
from unmask.evaluation.knn import KnnConfig, knn
from unmask.evaluation.linear import LinearConfig, quick_linear
from unmask.evaluation.metrics import Score, gap_noise
from unmask.evaluation.multilabel import MultiLabelScore, multilabel_linear
from unmask.evaluation.protocols import features_at_size_of
from unmask.evaluation.unlabelled import UnlabelledScore, measure_unlabelled
from unmask.models.encoder import Encoder
from unmask.models.pretrained import Pooling, PretrainedEncoder, open_encoder
from unmask.pretrain import build_method, exported_encoder, random_start
from unmask.run_folder import RunFolder
from unmask.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    load_module_tensors,
    saved_steps,
)

Protocol = Literal["knn", "linear", "full-linear"]
Network = Literal["pixels", "random", "pretrained"]
PIXEL_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One network's score by one protocol."""

    protocol: Protocol
    network: Network
    score: Score | MultiLabelScore


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How an encoder is evaluated."""

    protocol: Protocol
    pooling: Pooling
    knn: KnnConfig
    linear: LinearConfig
    full_linear: FullLinearConfig
    seed: int
    workers: int
    device: torch.device


def evaluate(
    spec: str,
    halves: tuple[Source, Source],
    settings: EvaluationSettings,
    *,
    floors: bool,
    on_start: Callable[[Network], None],
) -> Iterator[Evaluation]:
    """Scores of raw pixels, the random start (both with `floors`) and the encoder that `spec` names, one by one.

    Images with several classes each (`MultiLabelSource`) are for the quick linear probe alone; ValueError for others.
    """
    trained = open_encoder(spec)
    halves = _in_range(halves, trained)
    extractors = feature_extractors(spec, trained, pooling=settings.pooling, device=settings.device, floors=floors)
    for network, extractor in extractors:
        on_start(network)
        score = _score(extractor, halves, settings, trained.encoder)
        yield Evaluation(protocol=settings.protocol, network=network, score=score)


def feature_extractors(
    spec: str, trained: PretrainedEncoder, *, pooling: Pooling, device: torch.device, floors: bool
) -> Iterator[tuple[Network, FeatureExtractor]]:
    """Raw pixels and the random start (both with `floors`), then the encoder, each on `device`."""
    if floors:
        yield "pixels", pixel_extractor(min(PIXEL_SIDE, *trained.encoder.image_size))
        yield "random", partial(random_start(spec, trained).to(device).features, pooling=pooling)
    yield "pretrained", partial(trained.to(device).features, pooling=pooling)


def few_shots(
    spec: str,
    halves: tuple[Source, Source],
    config: FewShotConfig,
    *,
    pooling: Pooling,
    seed: int,
    workers: int,
    device: torch.device,
    floors: bool,
    on_start: Callable[[Network], None],
) -> Iterator[tuple[Network, tuple[FewShotResult, ...]]]:
    """What a few labels give with raw pixels, the random start (both with `floors`) and the encoder that `spec` names.

    All networks see the same labels in the same draws, so their scores may be compared draw by draw (see `gain`).
    """
    trained = open_encoder(spec)
    halves = _in_range(halves, trained)
    for half in halves:
        first_readable(half, channels=trained.encoder.config.channels)
    for network, extractor in feature_extractors(spec, trained, pooling=pooling, device=device, floors=floors):
        on_start(network)
        train, test = (features_at_size_of(trained.encoder, extractor, half, workers=workers) for half in halves)
        # Several threads gain nothing on matrices this small, and lose a hundredfold to each other on a busy machine.
        with threadpool_limits(limits=1, user_api="blas"):
            results = few_shot(train, test, config, seed)
        yield network, results


@dataclass(frozen=True)
class Gain:
    """By how many points one network is above another, as the mean over draws of the labels.

    `half` is half the 95 % Student-t interval of that mean, from the differences draw by draw: how far the choice of
    labelled images moves it. None with one draw. Another test set may move it too, and is not in it.
    """

    mean: float
    half: float | None

    @property
    def verdict(self) -> Literal["above", "below", "within"]:
        """Whether the difference is beyond the spread of the draws; within it where there is but one draw."""
        if self.half is None or abs(self.mean) <= self.half:
            return "within"
        return "above" if self.mean > 0 else "below"


def gain(better: FewShotResult, floor: FewShotResult) -> Gain | None:
    """Top-1 of one network against another's on the same draws of one budget; None where that budget has no scores."""
    assert (better.budget, better.classifier) == (floor.budget, floor.classifier)
    differences = [one.top1 - other.top1 for one, other in zip(better.scores, floor.scores, strict=True)]
    if not differences:
        return None
    if len(differences) == 1:
        return Gain(differences[0], None)
    error = stdev(differences) / math.sqrt(len(differences))
    return Gain(fmean(differences), float(student.ppf(0.975, len(differences) - 1)) * error)


def measured_networks(spec: str, *, floors: bool) -> Iterator[tuple[Network, PretrainedEncoder]]:
    """The random start (with `floors`), then the encoder that `spec` names."""
    trained = open_encoder(spec)
    if floors:
        yield "random", random_start(spec, trained)
    yield "pretrained", trained


@dataclass(frozen=True)
class KeptEncoder:
    """The encoder in one checkpoint of a run: after how many steps and epochs it was saved."""

    step: int
    epoch: float
    encoder: PretrainedEncoder


def kept_encoders(folder: RunFolder) -> Iterator[KeptEncoder]:
    """The encoder in every checkpoint that a pre-training run keeps, oldest first. A damaged checkpoint is left out.

    ValueError where the folder holds no run or no good checkpoint.
    """
    config = folder.config()
    trouble = f"{folder.path} has no checkpoint"
    found = False
    for step in saved_steps(folder.checkpoints):
        method = build_method(config)
        try:
            checkpoint = load_checkpoint(checkpoint_path(folder.checkpoints, step), torch.device("cpu"))
            load_module_tensors(method, checkpoint.tensors)
        except CheckpointError as error:
            trouble = str(error)
            continue
        found = True
        steps_per_epoch = checkpoint.values["samples"] // config.training.batch_size
        encoder = exported_encoder(method, f"{folder.path} at step {step}", config.pixel_range)
        yield KeptEncoder(step, step / steps_per_epoch, encoder)
    if not found:
        raise ValueError(trouble)


def unlabelled_score(
    encoder: PretrainedEncoder,
    source: Source,
    views: ViewConfig,
    *,
    pooling: Pooling,
    seed: int,
    workers: int,
    device: torch.device,
) -> UnlabelledScore:
    """What the encoder's features of augmented views tell without labels. The same seed looks at the same views.

    ValueError where there are not two readable images, and for features that are not finite.
    """
    height, width = encoder.encoder.image_size
    extractor = partial(encoder.to(device).features, pooling=pooling)
    return measure_unlabelled(
        view_features(
            extractor,
            in_range(source, encoder.pixel_range),
            views,
            height=height,
            width=width,
            channels=encoder.encoder.config.channels,
            seed=seed,
            workers=workers,
        )
    )


def _score(
    extractor: FeatureExtractor,
    halves: tuple[Source, Source],
    settings: EvaluationSettings,
    encoder: Encoder,
) -> Score | MultiLabelScore:
    if settings.protocol == "full-linear":
        height, width = encoder.image_size
        return full_linear(
            extractor,
            *halves,
            settings.full_linear,
            height=height,
            width=width,
            channels=encoder.config.channels,
            seed=settings.seed,
            workers=settings.workers,
            device=settings.device,
        ).score
    train, test = (features_at_size_of(encoder, extractor, half, workers=settings.workers) for half in halves)
    targets = [_targets(half, found) for half, found in zip(halves, (train, test), strict=True)]
    if settings.protocol == "knn":
        return knn(train, test, settings.knn, device=settings.device)
    if targets[0] is not None and targets[1] is not None:
        return multilabel_linear(
            train.x_ND, targets[0], test.x_ND, targets[1], settings.linear, settings.seed, settings.device
        ).score
    return quick_linear(train, test, settings.linear, settings.seed, device=settings.device).score


def _in_range(halves: tuple[Source, Source], encoder: PretrainedEncoder) -> tuple[Source, Source]:
    train, test = halves
    return in_range(train, encoder.pixel_range), in_range(test, encoder.pixel_range)


def _targets(half: Source, features: Features) -> Tensor | None:
    """Which classes each image with features has; None where every image has one class."""
    return torch.from_numpy(half.targets_NK)[features.indices_N] if isinstance(half, MultiLabelSource) else None


def compare(better: Score | MultiLabelScore, floor: Score | MultiLabelScore, name: str) -> str:
    """A sentence on whether `better` is above `floor`, beyond what another test set of this size could turn round."""
    if isinstance(better, Score) and isinstance(floor, Score):
        return gap_sentence(better.top1 - floor.top1, gap_noise(better, floor), name)
    assert isinstance(better, MultiLabelScore)
    assert isinstance(floor, MultiLabelScore)
    return gap_sentence(better.mean_ap - floor.mean_ap, interval_noise(better.interval, floor.interval), name)


def interval_noise(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Half the 95 % interval of the difference of two scores, from their own intervals, as if of independent sets."""
    return math.hypot((first[1] - first[0]) / 2, (second[1] - second[0]) / 2)


def gap_sentence(gap: float, noise: float, name: str) -> str:
    """What a gap of so many points against `name` is worth beside the noise of the test set."""
    if gap > noise:
        verdict = "clearly better"
    elif gap < -noise:
        verdict = "clearly worse"
    else:
        verdict = "within the noise"
    return f"{gap:+.1f} points against {name} (95 % noise of the test set: ±{noise:.1f}): {verdict}"
