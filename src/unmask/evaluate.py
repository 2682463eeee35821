"""Evaluations of an encoder beside its floors: raw pixels, and the same encoder at its random start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from unmask.data.multilabel import MultiLabelSource
from unmask.data.sources import Source
from unmask.evaluation.features import FeatureExtractor, Features, pixel_extractor
from unmask.evaluation.full_linear import FullLinearConfig, full_linear
from unmask.evaluation.knn import KnnConfig, knn
from unmask.evaluation.linear import LinearConfig, quick_linear
from unmask.evaluation.metrics import Score, gap_noise
from unmask.evaluation.multilabel import MultiLabelScore, multilabel_linear
from unmask.evaluation.protocols import features_at_size_of
from unmask.models.encoder import Encoder
from unmask.models.pretrained import Pooling, PretrainedEncoder, open_encoder
from unmask.pretrain import random_start

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
    for network, extractor in feature_extractors(spec, trained, settings, floors=floors):
        on_start(network)
        score = _score(extractor, halves, settings, trained.encoder)
        yield Evaluation(protocol=settings.protocol, network=network, score=score)


def feature_extractors(
    spec: str, trained: PretrainedEncoder, settings: EvaluationSettings, *, floors: bool
) -> Iterator[tuple[Network, FeatureExtractor]]:
    """Raw pixels and the random start (both with `floors`), then the encoder, each on the settings' device."""
    if floors:
        yield "pixels", pixel_extractor(min(PIXEL_SIDE, *trained.encoder.image_size))
        yield "random", partial(random_start(spec, trained).to(settings.device).features, pooling=settings.pooling)
    yield "pretrained", partial(trained.to(settings.device).features, pooling=settings.pooling)


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
