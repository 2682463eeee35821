"""ConMIM's projector in cheaper forms, which are options of ours: what each saves, and what it costs in accuracy.

Speed: one step of ViT-S/16 at 224 px on the CPU, float32, one thread, through the Trainer as users get it, on views
that are made already; beside it the authors' own step, restated (`benchmarks/plain/steps.py`). All take turns in one
process; ratios are medians of the rounds' own ratios, of processor seconds. Losses of the authors' step and of ours
without options must agree to 1e-5 in the first three steps (rounding grows with the steps), or there is no result.
Operations are counted, those of losses and backward pass.

Accuracy: each form pre-trains a small ViT (width 64, 2 blocks, 32 px, patches of 8) on 10,000 images of Fashion-MNIST
as `unmask pretrain` does, from the same start, in the same order of images and masks; frozen features of its target
are then scored by kNN and by a linear probe on 2,000 other images, beside the random start. The projector is 8 times
as wide as the encoder (the authors' is 10.7 times as wide as ViT-S).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cpu_step import RATE, TOLERANCE, our_step
from benchmarks.harness import Table, Timing, facts, paired_ratio, publish, take_turns
from benchmarks.plain.steps import PlainStep
from unmask.config import RunConfig
from unmask.data.batch import Batch
from unmask.data.sources import labelled
from unmask.evaluation.knn import KnnConfig, knn
from unmask.evaluation.linear import LinearConfig, quick_linear
from unmask.evaluation.protocols import encoder_features
from unmask.methods.conmim import ConMIM, ConMIMConfig
from unmask.models.pretrained import PretrainedEncoder, open_encoder
from unmask.pretrain import build_method, exported_encoder, pretrain
from unmask.recipes.demo import demo
from unmask.run_folder import RunFolder
from unmask.views import Views

SEED = 0
CPU = torch.device("cpu")
AUTHORS, RANDOM = "authors' step", "random start"


@dataclass(frozen=True)
class Form:
    """A form of the projector: what is set beside the defaults."""

    name: str
    needed: bool = False
    query_share: float = 1.0
    narrower: int = 1
    """By how much the hidden layers are narrower."""

    def of(self, config: ConMIMConfig) -> ConMIMConfig:
        """A configuration in this form."""
        projector = replace(config.projector, hidden=config.projector.hidden // self.narrower)
        projected = "needed" if self.needed else config.projected
        return replace(config, projector=projector, projected=projected, query_share=self.query_share)

    def options(self, config: ConMIMConfig) -> str:
        """What a user sets for it."""
        parts = ["projected=needed"] if self.needed else []
        parts += [f"query-share={self.query_share:g}"] if self.query_share < 1 else []
        parts += [f"projector.hidden={config.projector.hidden // self.narrower}"] if self.narrower > 1 else []
        return ", ".join(parts) or "none"


PLAIN = Form("ours, no option")
FORMS = (
    PLAIN,
    Form("needed tokens", needed=True),
    Form("needed tokens, half the queries", needed=True, query_share=0.5),
    Form("half as wide", narrower=2),
    Form("all three: half as wide, needed tokens, half the queries", needed=True, query_share=0.5, narrower=2),
)


def small_vit() -> ConMIMConfig:
    """The authors' settings for ViT-S/16 with a constant learning rate."""
    settings = ConMIMConfig()
    optimizer = replace(settings.optimizer, lr=RATE, lr_batch=None, warmup_epochs=0, decay="linear", min_lr=RATE)
    return replace(settings, optimizer=optimizer)


@dataclass(frozen=True)
class Speed:
    """Of all forms and of the authors' step."""

    timings: dict[str, Timing]
    losses: dict[str, list[float]]
    gflop: dict[str, float]
    """Of one image, by form."""


def speed(config: ConMIMConfig, batch_size: int, rounds: int) -> Speed:
    """Steps of all forms in turns, all on the same views and from the same start."""
    first = _method(PLAIN, config)
    (crop,) = first.crops
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(batch_size, 3, 14, 14, generator=generator) * 255
    pixels = torch.nn.functional.interpolate(coarse, size=(crop.height, crop.width), mode="bicubic")
    batch = Batch.of(pixels.clamp(0, 255).to(torch.uint8), seed=SEED)
    views = first.make_views(batch)
    plain = PlainStep(first, lr=RATE)
    steps: dict[str, Callable[[], float]] = {AUTHORS: lambda: plain.step(views)}
    gflop = {}
    for form in FORMS:
        method = _method(form, config)
        gflop[form.name] = gflop_of(_method(form, config), views)
        steps[form.name] = our_step(method, batch, views, compiled=False)
    losses: dict[str, list[float]] = {name: [] for name in steps}
    timings = take_turns({name: _noting(step, losses[name]) for name, step in steps.items()}, rounds=rounds)
    for theirs, ours in zip(losses[AUTHORS][:3], losses[PLAIN.name][:3], strict=True):
        if abs(theirs - ours) > TOLERANCE * max(1, abs(theirs)):
            raise SystemExit(f"losses of ours differ from the authors': {losses[PLAIN.name]}, {losses[AUTHORS]}")
    return Speed(timings, losses, gflop)


def _method(form: Form, config: ConMIMConfig) -> ConMIM:
    torch.manual_seed(SEED)
    return ConMIM(form.of(config))


def _noting(step: Callable[[], float], losses: list[float]) -> Callable[[], None]:
    return lambda: losses.append(step())


def gflop_of(method: ConMIM, views: Views) -> float:
    """Operations of losses and backward pass for one image, in thousands of millions; the method moves to `meta`."""
    moved = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in vars(views).items()}
    with FlopCounterMode(display=False) as counter:
        method.to("meta").losses(replace(views, **moved))["contrast"].backward()
    return float(counter.get_total_flops()) / len(views.online) / 1e9


def speed_table(result: Speed, config: ConMIMConfig, batch_size: int) -> Table:
    """One line for the authors' step and for each form."""
    cpu = {name: timing.cpu for name, timing in result.timings.items()}
    rows: list[tuple[str | float | None, ...]] = [
        (AUTHORS, None, None, result.timings[AUTHORS].cpu_seconds, 1.0, paired_ratio(cpu[PLAIN.name], cpu[AUTHORS]))
    ]
    for form in FORMS:
        mine, seconds = cpu[form.name], result.timings[form.name].cpu_seconds
        ratios = paired_ratio(cpu[AUTHORS], mine), paired_ratio(cpu[PLAIN.name], mine)
        rows.append((form.name, form.options(config), result.gflop[form.name], seconds, *ratios))
    encoder = config.encoder.name.partition("_patch")[0]
    caption = f"Speed: a step of {encoder} with {batch_size} images, one thread."
    return Table(
        caption,
        ("form", "options", "GFLOP an image", "CPU seconds", "authors' time by its", "ours without options by its"),
        tuple(rows),
    )


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent by form, one value a seed."""

    knn: dict[str, list[float]]
    linear: dict[str, list[float]]

    @classmethod
    def none_yet(cls) -> Accuracy:
        """No scores."""
        names = (RANDOM, *(form.name for form in FORMS))
        return cls({name: [] for name in names}, {name: [] for name in names})


def run_config(form: Form, *, epochs: float, seed: int, width: int = 64, depth: int = 2) -> RunConfig:
    """The demonstration with a smaller encoder and, for it, as wide a projector as the authors'."""
    run = demo()
    settings = run.settings
    assert isinstance(settings, ConMIMConfig)
    settings = replace(
        settings,
        encoder=replace(settings.encoder, width=width, depth=depth, heads=width // 32),
        projector=replace(settings.projector, hidden=8 * width),
        optimizer=replace(settings.optimizer, warmup_epochs=epochs / 10),
    )
    training = replace(
        run.training, epochs=epochs, batch_size=64, seed=seed, workers=0, device="cpu", checkpoint_every=1_000_000
    )
    return replace(run, settings=form.of(settings), training=training)


def score_forms(result: Accuracy, runs: Callable[[Form], RunConfig]) -> None:
    """Add scores of another seed: of the random start that all forms share, and of each form."""
    start = runs(PLAIN)
    _score(result, RANDOM, exported_encoder(build_method(start), RANDOM), start.data)
    for form in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            run = runs(form)
            pretrain(run, RunFolder(Path(folder) / "run"), Console(quiet=True))
            _score(result, form.name, open_encoder(str(Path(folder) / "run")), run.data)
        print(f"{form.name}: kNN {result.knn[form.name][-1]}, linear {result.linear[form.name][-1]}", flush=True)


def _score(result: Accuracy, name: str, encoder: PretrainedEncoder, data: str) -> None:
    train, test = (encoder_features(encoder, half, workers=0) for half in labelled(data))
    result.knn[name].append(knn(train, test, KnnConfig(), device=CPU).top1)
    result.linear[name].append(quick_linear(train, test, LinearConfig(), SEED, device=CPU).score.top1)


def accuracy_table(result: Accuracy, run: RunConfig, seeds: Sequence[int]) -> Table:
    """One line for the random start and for each form."""
    rows: list[tuple[str | float | None, ...]] = []
    for name, scores in result.knn.items():
        linear, plain = result.linear[name], result.linear[PLAIN.name]
        apart = [f"{mine - other:+.2f}" for mine, other in zip(linear, plain, strict=True)]
        rows.append((name, statistics.mean(scores), statistics.mean(linear), ", ".join(apart)))
    caption = (
        f"Accuracy: {run.training.epochs:g} epochs of {run.data}, means of seeds {', '.join(map(str, seeds))}. "
        f"One score of 2,000 images is good to about 2 points (95 %)."
    )
    columns = ("form", "kNN top-1, %", "linear top-1, %", "linear, points above ours without options, by seed")
    return Table(caption, columns, tuple(rows))


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4, help="images of a step whose time is taken")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = small_vit()
    fast = speed(config, arguments.batch_size, arguments.rounds)
    first = speed_table(fast, config, arguments.batch_size)
    print(first.markdown(), flush=True)
    scores = Accuracy.none_yet()
    for number, seed in enumerate(arguments.seeds, start=1):
        runs = partial(run_config, epochs=arguments.epochs, seed=seed)
        score_forms(scores, runs)
        second = accuracy_table(scores, runs(PLAIN), arguments.seeds[:number])
        raw: dict[str, Any] = {
            "cpu": {name: timing.cpu for name, timing in fast.timings.items()},
            "losses": fast.losses,
            "knn": scores.knn,
            "linear": scores.linear,
        }
        # After every seed: whoever stops it early has a result.
        publish("projector", [first, second], out=arguments.out, facts=facts(seed=SEED), raw=raw)


if __name__ == "__main__":
    main()
