"""Pre-training: from a configuration to a finished encoder, by the one loop of `unmask.run_loop`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from unmask import __version__
from unmask.config import RunConfig
from unmask.data.batch import Batch
from unmask.data.loader import CropLoader
from unmask.data.pixel_range import PixelRange, in_range
from unmask.data.sources import Source, open_source
from unmask.data.statistics import first_readable
from unmask.evaluation.health import Health, diagnose, probe
from unmask.evaluation.knn import KnnConfig, knn
from unmask.evaluation.protocols import encoder_features, labelled_or_none
from unmask.interop.start import load_start
from unmask.loggers.outlets import check_trackers
from unmask.masking import masked_count
from unmask.methods import find_method, name_of
from unmask.methods.base import MaskedMethodConfig, Method
from unmask.models.build import build_encoder
from unmask.models.convolutional import ConvEncoder, refuse_masks
from unmask.models.pretrained import PretrainedEncoder, encoder_file, open_encoder
from unmask.ranks import any_rank, rank
from unmask.run_folder import RunFolder
from unmask.run_loop import Job, Outcome, RunState, run_loop
from unmask.training.checkpoint import write_atomically
from unmask.training.distributed import own_device
from unmask.training.signals import StopRequest
from unmask.training.trainer import NonFiniteLoss, Trainer, choose_device
from unmask.training.watch import Watch
from unmask.views import Views

PROBE_IMAGES = 256
PROBE_IMAGES_ON_CPU = 64  # a look at a ViT-B there costs as much as a dozen steps
HEALTH_CHECKS = 20


def build_method(config: RunConfig) -> Method:
    """The method of a run at its random start, which follows from the seed alone."""
    torch.manual_seed(config.training.seed)
    return find_method(config.method)(config.settings)


def exported_encoder(method: Method, origin: str, pixel_range: PixelRange | None = None) -> PretrainedEncoder:
    """What a method has learnt, ready for evaluation. The encoder is shared with the method, not copied."""
    return PretrainedEncoder(
        encoder=method.exported(),
        mean=method.config.mean,
        std=method.config.std,
        origin=origin,
        pixel_range=pixel_range,
    )


def save_encoder(
    method: Method, path: str | Path, *, data: str | None = None, pixel_range: PixelRange | None = None
) -> None:
    """Write what a method has learnt to an encoder file, as a finished run leaves it: `unmask.open_encoder` and all
    commands read it. `data` names the images in its header, `pixel_range` is theirs where they have more than 8 bits.
    ValueError where the disk refuses."""
    write_atomically(Path(path), *_encoder_file(method, name_of(method), data, pixel_range))


def _encoder_file(
    method: Method, name: str, data: str | None, pixel_range: PixelRange | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. Of a sharded method every rank calls it, as none holds all."""
    facts = {"method": name, "version": __version__, "data": data}
    mean, std = method.config.mean, method.config.std
    return encoder_file(method.exported(), mean=mean, std=std, facts=facts, pixel_range=pixel_range)


def random_start(spec: str, trained: PretrainedEncoder) -> PretrainedEncoder:
    """The encoder as it was before training: a run's own start; for other encoders one of the same shape."""
    folder = RunFolder(Path(spec))
    if folder.config_file.exists():
        config = folder.config()
        return exported_encoder(build_method(config), f"{spec} at its random start", config.pixel_range)
    torch.manual_seed(0)
    return PretrainedEncoder(
        encoder=build_encoder(trained.encoder.config, mask_token=False),
        mean=trained.mean,
        std=trained.std,
        origin="random start",
        pixel_range=trained.pixel_range,
    )


def pretrain(
    config: RunConfig, folder: RunFolder, console: Console, watch: Watch | None = None, *, shard: bool = False
) -> Outcome:
    """Run `config` in `folder`, from its newest checkpoint if it has one. Every rank calls it; the first one writes.

    With `shard` each of several ranks holds a share of the weights only.
    ValueError for whatever the user gave that cannot work; NonFiniteLoss where training breaks down.
    """
    training = config.training
    check_trackers(training.log)
    device = own_device(choose_device(training.device))
    source = in_range(open_source(config.data), config.pixel_range)
    if len(source) < training.batch_size:
        raise ValueError(
            f"a batch of {training.batch_size} is larger than the data: {config.data} has {len(source)} images"
        )
    with StopRequest() as stop:
        first_readable(source, channels=config.settings.encoder.channels)
        method = build_method(config)
        config = begin_from_weights(config, folder, method, console)
        # A mask that the grid of patches cannot have is refused before anything is written.
        if isinstance(config.settings, MaskedMethodConfig):
            if isinstance(method.exported(), ConvEncoder):
                refuse_masks(config.settings.encoder.name)
            masked_count(config.settings.mask, method.exported().grid)
        trainer = Trainer(
            method, training, steps_per_epoch=len(source) // training.batch_size, device=device, shard=shard
        )
        if rank() == 0:
            folder.claim(config)
        any_rank(False)  # nobody looks into the folder before it is claimed
        return run_loop(_Pretraining(config, folder, method, source, device), trainer, folder, console, stop, watch)


def begin_from_weights(config: RunConfig, folder: RunFolder, method: Method, console: Console) -> RunConfig:
    """Load what the run is to begin from; the configuration with the account of it.

    A run that has checkpoints, or is finished, needs the file no more: its own config.json has the account.
    """
    if config.start is None:
        return config
    if folder.has_checkpoints() or folder.encoder_file.exists():
        recorded = begun_from(folder, config.start.weights)
        return config if recorded is None else replace(config, start=recorded.start)
    start = load_start(method, open_encoder(config.start.weights), config.start.weights)
    console.print(f"[bold]{'weights':<13}[/bold] {escape(start.weights)}", highlight=False)
    for sentence in start.sentences():
        console.print(f"{'':<13} {sentence}", highlight=False, markup=False)
    return replace(config, start=start)


def begun_from(folder: RunFolder, weights: str) -> RunConfig | None:
    """The configuration of a run that has begun in `folder` from these weights; None where there is no such run."""
    start = folder.values().get("start") if folder.config_file.exists() else None
    return folder.config() if isinstance(start, dict) and start.get("weights") == weights else None


def crop_loader(
    config: RunConfig, method: Method, source: Source, device: torch.device, *, first: int, last: int, mine: range
) -> CropLoader:
    """The batches of a run for the steps `first` to `last` - 1, of each the parts `mine`."""
    training = config.training
    return CropLoader(
        source,
        method.crops,
        batch_size=training.part_size,
        parts=training.parts,
        mine=mine,
        total_steps=last,
        start_step=first,
        seed=training.seed,
        workers=training.workers,
        channels=config.settings.encoder.channels,
        pin_memory=device.type == "cuda",
        max_bad_share=training.max_bad_share,
        captions=method.reads_captions,
    )


class _Pretraining(Job[Batch]):
    """What pre-training looks at on the way: health, and kNN where the data has labels."""

    word = "pre-training"

    def __init__(
        self, config: RunConfig, folder: RunFolder, method: Method, source: Source, device: torch.device
    ) -> None:
        self.config = config
        self.folder = folder
        self.method = method
        self.source = source
        self.device = device
        self.start_health: Health | None = None
        self._views: Views | None = None

    @property
    def data(self) -> str:
        return self.config.data

    @property
    def samples(self) -> int:
        return len(self.source)

    def finished_before(self) -> bool:
        return self.folder.encoder_file.exists()

    def batches(self, first: int, last: int, mine: range) -> CropLoader:
        return crop_loader(self.config, self.method, self.source, self.device, first=first, last=last, mine=mine)

    def begin(self, run: RunState) -> None:
        self._views = self._probe_views()
        self._check_health(run)
        if run.trainer.step == 0 and self._evaluate_every(run):
            self._evaluate("random", run)

    def due(self, run: RunState, *, done: bool) -> bool:
        return self._health_due(run, done) or self._score_due(run, done)

    def look(self, run: RunState, *, done: bool) -> None:
        if self._health_due(run, done):
            self._check_health(run)
        if self._score_due(run, done):
            self._evaluate("pretrained", run)

    def values(self) -> dict[str, Any]:
        return {"start_health": None if self.start_health is None else self.start_health.as_dict()}

    def restore(self, values: dict[str, Any]) -> None:
        self.start_health = None if values["start_health"] is None else Health(**values["start_health"])

    def finish(self, run: RunState) -> Callable[[], object]:
        tensors, metadata = _encoder_file(self.method, self.config.method, self.config.data, self.config.pixel_range)
        return partial(write_atomically, self.folder.encoder_file, tensors, metadata)

    def _health_due(self, run: RunState, done: bool) -> bool:
        return done or run.trainer.step % max(1, run.trainer.total_steps // HEALTH_CHECKS) == 0

    def _score_due(self, run: RunState, done: bool) -> bool:
        every = self._evaluate_every(run)
        return every > 0 and (done or run.trainer.step % every == 0)

    def _evaluate_every(self, run: RunState) -> int:
        return round(self.config.training.evaluate_every * run.steps_per_epoch)

    def _probe_views(self) -> Views:
        """Two views each of some images, the same ones for the whole run."""
        most = PROBE_IMAGES_ON_CPU if self.device.type == "cpu" else PROBE_IMAGES
        images = min(most, len(self.source))
        loader = CropLoader(
            self.source,
            self.method.crops,
            batch_size=images,
            total_steps=1,
            seed=self.config.training.seed + 1,
            workers=0,
            channels=self.config.settings.encoder.channels,
            max_bad_share=1.0,
            captions=self.method.reads_captions,
        )
        batch: Batch = next(iter(loader)).to(self.device)
        views: Views = self.method.make_views(batch)
        assert batch.seed is not None
        if views.target is None:
            views = replace(views, target=self.method.make_views(replace(batch, seed=batch.seed ^ 1)).online)
        return views

    def _check_health(self, run: RunState) -> None:
        assert self._views is not None
        assert self._views.target is not None
        try:
            health = probe(self.method.exported(), self._views.online, self._views.target)
        except ValueError as error:
            # Weights can leave the finite numbers in a step whose loss and gradient are still finite.
            raise NonFiniteLoss(
                f"after step {run.trainer.step} {error}; what was saved before is intact: try a lower --lr, clipping, "
                "or --precision fp32"
            ) from error
        if self.start_health is None:
            self.start_health = health
        warnings = diagnose(health, self.start_health)
        for sentence in warnings:
            run.say(f"health: {sentence}")
        run.log("health", figures=health.as_dict(), warnings=warnings)

    def _evaluate(self, network: str, run: RunState) -> None:
        halves = labelled_or_none(self.config.data)
        if halves is None:
            return
        encoder = exported_encoder(self.method, str(self.folder.path), self.config.pixel_range)
        training = encoder.encoder.training
        encoder.encoder.eval()
        train, test = (encoder_features(encoder, half, workers=self.config.training.workers) for half in halves)
        encoder.encoder.train(training)
        score = knn(train, test, KnnConfig())
        run.say(f"epoch {run.trainer.step / run.steps_per_epoch:.0f}: kNN top-1 {score.top1:.1f} %")
        run.log("evaluation", name="knn", network=network, score=score.as_dict())
