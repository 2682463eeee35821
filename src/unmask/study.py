"""Encoders side by side on one labelled set: finished ones, and methods that are pre-trained for the comparison.

Methods start from the same initial encoder, see the same number of images and share batch, learning rate and sizes of
heads and decoders; what is left is what the method itself does. Everything is resumable: runs by their checkpoints,
scores by the file of results.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from rich.console import Console
from typing_extensions import Doc

from unmask.config import RunConfig, structure
from unmask.data.pixel_range import in_range, measured_range
from unmask.data.sources import Source
from unmask.defaults import Wishes, fit_settings, fitting_channels
from unmask.errors import Failure
from unmask.evaluation.features import FeatureExtractor, pixel_extractor
from unmask.evaluation.knn import KnnConfig, knn
from unmask.evaluation.linear import LinearConfig, quick_linear
from unmask.evaluation.metrics import Score
from unmask.evaluation.protocols import features_at_size_of
from unmask.evaluation.unlabelled import rankme
from unmask.methods import METHODS, find_method
from unmask.models.decoder import DecoderConfig
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder, open_encoder
from unmask.pretrain import build_method, exported_encoder, pretrain
from unmask.run_folder import RunFolder
from unmask.training.trainer import TrainingConfig, choose_device

PIXELS = "raw pixels"
RANDOM = "random start"
PROTOCOLS = ("knn", "linear")
C = TypeVar("C")


class StudyStopped(Exception):
    """A signal stopped a run of the comparison; everything is saved."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every method of a comparison gets."""

    epochs: Annotated[float, Doc("Passes over the training half.")] = 3.0
    batch_size: Annotated[int, Doc("Images of one optimizer step.")] = 128
    lr: Annotated[float, Doc("Peak learning rate of AdamW for every method, absolute.")] = 1e-3
    image_size: Annotated[int, Doc("Side of the crops in pixels.")] = 32
    patch_size: Annotated[int, Doc("Side of a patch in pixels.")] = 8
    width: Annotated[int, Doc("Width of the encoder.")] = 128
    depth: Annotated[int, Doc("Blocks of the encoder.")] = 4
    heads: Annotated[int, Doc("Attention heads of the encoder.")] = 4
    seed: Annotated[int, Doc("Seed of weights, crops and probes.")] = 0
    workers: Annotated[int, Doc("Processes that decode images.")] = 1
    device: Annotated[str, Doc("cpu, cuda, cuda:1, mps; auto takes the best there is.")] = "auto"
    tokenizer: Annotated[str | None, Doc("Tokenizer file for methods that predict visual tokens.")] = None
    teacher: Annotated[str | None, Doc("Run or encoder for methods that learn from a frozen teacher.")] = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the comparison; without scores, `reason` says why."""

    name: str
    scores: dict[str, Score]
    rank: float | None = None
    same_start: bool | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in results.jsonl."""
        scores = {name: score.as_dict() for name, score in self.scores.items()}
        return dataclasses.asdict(self) | {"scores": scores}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Entry:
        """The entry that `as_dict` wrote."""
        scores = {name: structure(score, Score, f"score {name}") for name, score in values["scores"].items()}
        return cls(**(values | {"scores": scores}))


def common_encoder(budget: Budget, channels: int) -> EncoderConfig:
    """The encoder that every method starts from: a plain ViT with learned positions, which every method can use."""
    return EncoderConfig(
        name="vit_tiny_patch16_224",
        image_height=budget.image_size,
        image_width=budget.image_size,
        patch_size=budget.patch_size,
        channels=channels,
        width=budget.width,
        depth=budget.depth,
        heads=budget.heads,
        position="learned",
    )


def method_config(name: str, data: str, source: Source, budget: Budget) -> RunConfig:
    """The run of method `name` within the budget. ValueError where it lacks a tokenizer or teacher."""
    settings = find_method(name).Config()
    wishes = Wishes(image_size=(budget.image_size, budget.image_size), patch_size=budget.patch_size)
    if settings.encoder.name.startswith("vit_"):
        # What a method needs of its encoder (no final norm, its way with positions of local crops) stays.
        common = common_encoder(budget, settings.encoder.channels)
        kept = {key: getattr(settings.encoder, key) for key in ("final_norm", "position_resize")}
        settings = replace(settings, encoder=replace(common, **kept))
    elif settings.encoder.name.startswith("resnet"):
        settings = replace(settings, encoder=common_encoder(budget, settings.encoder.channels))
    else:
        # An encoder of another kind (ConvMAE's, iGPT's) is made as wide and deep.
        sizes = replace(settings.encoder, width=budget.width, depth=budget.depth, heads=budget.heads)
        settings = replace(settings, encoder=sizes)
    channels = fitting_channels(settings.encoder.channels, None, source)
    pixel_range = measured_range(source, channels=channels)
    settings, _ = fit_settings(settings, wishes, in_range(source, pixel_range))
    optimizer = replace(
        settings.optimizer,
        kind="adamw",
        lr=budget.lr,
        lr_batch=None,
        min_lr=0.0,
        decay="cosine",
        warmup_start=0.0,
        warmup_epochs=budget.epochs / 10,
    )
    settings = shrunken(replace(settings, optimizer=optimizer), budget.width)
    for need in ("tokenizer", "teacher"):
        if any(field.name == need for field in dataclasses.fields(settings)):
            given = getattr(budget, need)
            if given is None and getattr(settings, need) is None and name not in ("splitmask", "cim"):
                raise ValueError(f"{name} needs --{need}")
            if given is not None:
                settings = replace(settings, **{need: given})
    training = TrainingConfig(
        epochs=budget.epochs,
        batch_size=budget.batch_size,
        seed=budget.seed,
        device=budget.device,
        workers=budget.workers,
        checkpoint_every=1_000_000,
    )
    return RunConfig(data=data, method=name, settings=settings, training=training, pixel_range=pixel_range)


def shrunken(config: C, width: int) -> C:
    """A configuration whose decoders are as wide as the encoder, with small heads and queues, and few local crops."""
    if isinstance(config, DecoderConfig):
        # As many heads as keep 32 dimensions each.
        return replace(config, width=width, depth=min(config.depth, 2), heads=max(1, width // 32))
    limits = {
        "hidden": 4 * width,
        "out": 2 * width,
        "bottleneck": width,
        "prototypes": 8 * width,
        "queue": 32 * width,
        "local_crops": 4,
    }
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, (EncoderConfig, type)):
            changes[field.name] = shrunken(value, width)
        elif isinstance(value, int) and not isinstance(value, bool) and field.name in limits:
            changes[field.name] = min(value, limits[field.name])
    return replace(config, **changes)  # type: ignore[type-var]


class Study:
    """A comparison in a folder: one run folder a method, and the results as JSON lines."""

    def __init__(
        self, folder: Path, data: str, halves: tuple[Source, Source], budget: Budget, console: Console
    ) -> None:
        self.folder = folder
        self.data = data
        self.halves = halves
        self.budget = budget
        self.console = console
        self.device = choose_device(budget.device)

    @property
    def results(self) -> Path:
        """One line of JSON an entry."""
        return self.folder / "results.jsonl"

    def entries(self, names: list[str]) -> Iterator[Entry]:
        """The two floors and an entry for each name, from the file where they stand there already.

        ValueError where a name is of nothing, or the folder holds another comparison; StudyStopped where a signal
        stopped a run, with everything saved.
        """
        for name in names:
            if name not in METHODS:
                open_encoder(name)  # what does not exist is refused before anything is trained
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self._known()
        for name in dict.fromkeys([PIXELS, RANDOM, *names]):
            if name not in known:
                entry = self._entry(name)
                record = entry.as_dict() | {"data": self.data, "budget": dataclasses.asdict(self.budget)}
                with self.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                known[name] = entry
            yield known[name]

    def _known(self) -> dict[str, Entry]:
        if not self.results.exists():
            return {}
        known = {}
        for line in self.results.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            if (values.pop("data"), values.pop("budget")) != (self.data, dataclasses.asdict(self.budget)):
                raise ValueError(f"{self.results} is of another comparison; choose another --out")
            entry = Entry.of(values)
            # What could not run may be able to now.
            if not entry.reason:
                known[entry.name] = entry
        return known

    def _entry(self, name: str) -> Entry:
        if name == PIXELS:
            side = self.budget.image_size
            return self._scored(name, self._random_start(), pixel_extractor(side))
        if name == RANDOM:
            start = self._random_start()
            return self._scored(name, start, start.features)
        try:
            return self._pretrained(name) if name in METHODS else self._opened(name, name)
        except (ValueError, Failure) as error:
            return Entry(name=name, scores={}, reason=str(error))

    def _random_start(self) -> PretrainedEncoder:
        """The encoder that all methods start from."""
        config = method_config("mae", self.data, self.halves[0], self.budget)
        return exported_encoder(build_method(config), RANDOM, config.pixel_range).to(self.device)

    def _pretrained(self, name: str) -> Entry:
        config = method_config(name, self.data, self.halves[0], self.budget)
        folder = RunFolder(self.folder / name)
        self.console.print(f"[bold]{name}[/bold]", highlight=False)
        same = same_values(self._random_start(), exported_encoder(build_method(config), name).to(self.device))
        if pretrain(config, folder, self.console).kind == "stopped":
            raise StudyStopped(f"stopped while {name} was pre-trained, all saved; the same command resumes")
        return replace(self._opened(name, str(folder.path)), same_start=same)

    def _opened(self, name: str, spec: str) -> Entry:
        encoder = open_encoder(spec).to(self.device)
        return self._scored(name, encoder, encoder.features)

    def _scored(self, name: str, encoder: PretrainedEncoder, extractor: FeatureExtractor) -> Entry:
        """Scores of features by `extractor` at the image size of `encoder`."""
        train, test = (
            features_at_size_of(
                encoder.encoder, extractor, in_range(half, encoder.pixel_range), workers=self.budget.workers
            )
            for half in self.halves
        )
        linear = quick_linear(train, test, LinearConfig(), self.budget.seed, device=self.device)
        scores = {"knn": knn(train, test, KnnConfig(), device=self.device), "linear": linear.score}
        return Entry(name=name, scores=scores, rank=rankme(test.x_ND))


def same_values(first: PretrainedEncoder, second: PretrainedEncoder) -> bool:
    """Whether all parameters of the second encoder stand in the first, with the same values."""
    there = first.encoder.network.state_dict()
    return all(
        name in there and there[name].shape == value.shape and torch.equal(there[name], value)
        for name, value in second.encoder.network.state_dict().items()
    )
