"""Evaluations of an encoder beside its floors: raw pixels, and the same encoder at its random start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from unmask.data.sources import Source
from unmask.evaluation.features import FeatureExtractor, pixel_extractor
from unmask.evaluation.full_linear import FullLinearConfig, full_linear
from unmask.evaluation.knn import KnnConfig, knn
from unmask.evaluation.linear import LinearConfig, quick_linear
from unmask.evaluation.metrics import Score, gap_noise
from unmask.evaluation.protocols import features_at_size_of
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.pretrained import Pooling, PretrainedEncoder, open_encoder
from unmask.pretrain import build_method, exported_encoder
from unmask.run_folder import RunFolder

Protocol = Literal["knn", "linear", "full-linear"]
Network = Literal["pixels", "random", "pretrained"]
PIXEL_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One network's score by one protocol."""

    protocol: Protocol
    network: Network
    score: Score


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


def random_start(spec: str, trained: PretrainedEncoder) -> PretrainedEncoder:
    """The encoder as it was before training: a run's own start; for other encoders one of the same shape."""
    folder = RunFolder(Path(spec))
    if folder.config_file.exists():
        config = folder.config()
        return exported_encoder(build_method(config), f"{spec} at its random start")
    torch.manual_seed(0)
    return PretrainedEncoder(
        encoder=build_encoder(trained.encoder.config, mask_token=False),
        mean=trained.mean,
        std=trained.std,
        origin="random start",
    )


def evaluate(
    spec: str,
    halves: tuple[Source, Source],
    settings: EvaluationSettings,
    *,
    floors: bool,
    on_start: Callable[[Network], None],
) -> Iterator[Evaluation]:
    """Scores of raw pixels, the random start (both with `floors`) and the encoder that `spec` names, one by one."""
    trained = open_encoder(spec)
    height, width = trained.encoder.image_size
    networks: list[tuple[Network, FeatureExtractor]] = []
    if floors:
        networks.append(("pixels", pixel_extractor(min(PIXEL_SIDE, height, width))))
        start = random_start(spec, trained).to(settings.device)
        networks.append(("random", partial(start.features, pooling=settings.pooling)))
    networks.append(("pretrained", partial(trained.to(settings.device).features, pooling=settings.pooling)))
    for network, extractor in networks:
        on_start(network)
        score = _score(extractor, halves, settings, trained.encoder)
        yield Evaluation(protocol=settings.protocol, network=network, score=score)


def _score(
    extractor: FeatureExtractor,
    halves: tuple[Source, Source],
    settings: EvaluationSettings,
    encoder: Encoder,
) -> Score:
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
    if settings.protocol == "knn":
        return knn(train, test, settings.knn, device=settings.device)
    return quick_linear(train, test, settings.linear, settings.seed, device=settings.device).score


def compare(better: Score, floor: Score, name: str) -> str:
    """A sentence on whether `better` is above `floor`, beyond what another test set of this size could turn round."""
    gap = better.top1 - floor.top1
    noise = gap_noise(better, floor)
    if gap > noise:
        verdict = "clearly better"
    elif gap < -noise:
        verdict = "clearly worse"
    else:
        verdict = "within the noise"
    return f"{gap:+.1f} points against {name} (95 % noise of the test set: ±{noise:.1f}): {verdict}"
