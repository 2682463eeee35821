"""`unmask evaluate certified RUN DATA`: what no small change of the pixels can take away, by randomised smoothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.evaluate.classifiers import (
    CLASSIFIER_FILE,
    classifier_path,
    fingerprint,
    network_of,
    read_single_label,
    supervised_values,
)
from unmask.commands.evaluate.features import is_multilabel
from unmask.commands.evaluate.parts import Parts, PartsStopped
from unmask.commands.evaluate.shared import (
    EvaluationOptions,
    data_stem,
    plain_table,
    print_json,
    record_result,
    results_folder,
    workers_of,
    write_drawing,
)
from unmask.commands.evaluate.trained import named_fields, recipe_for
from unmask.commands.evaluate.training import PREFIX, Plan, TrainedOptions, first_set, train_with_floor, with_size
from unmask.commands.parse import given, parse
from unmask.data.pixel_range import in_range
from unmask.data.sources import Source, labelled
from unmask.data.statistics import first_readable
from unmask.errors import STOPPED
from unmask.evaluate import gap_sentence, interval_noise
from unmask.evaluation.certified import CertifiedConfig, CertifiedImage, CertifiedScore, certify
from unmask.evaluation.classifier import evenly, matched_labels
from unmask.evaluation.kept import KeptParts
from unmask.recipes.finetuning import FinetuneRecipe
from unmask.report.charts import line_chart
from unmask.supervised.config import LabelBudget
from unmask.tasks.classification import ClassifierConfig
from unmask.tasks.classifier_file import FinishedClassifier
from unmask.training.trainer import choose_device

NAMES = {"pretrained": "pre-trained", "random": "random start"}
DRAWN = 100
STRONG_NOISE_ENTROPY = 0.1
"""Weight of the entropy at a noise of 1 and more. [DMAE's FINETUNE.md]"""


@dataclass(frozen=True, kw_only=True)
class Certified(TrainedOptions):
    """Prove for each test image how far its pixels may be changed, as a Euclidean length, before the class changes: by
    randomised smoothing, with Gaussian noise. RUN is an encoder, which is first fine-tuned against that noise (in a run
    folder of its own), or a finished classifier. The same command again resumes what was stopped."""

    run: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="RUN"),
        Doc("The run folder or file of an encoder or a finished classifier, or timm:NAME."),
    ]
    sigma: Annotated[
        float | None,
        Doc(
            "Deviation of the noise, of pixel values in [0, 1], in training and certifying. Default: 0.25, or what a "
            "finished classifier was trained with."
        ),
    ] = None
    n0: Annotated[int, Doc("Noisy copies of an image by which its class is chosen.")] = CertifiedConfig.n0
    n: Annotated[
        int, Doc("Noisy copies by which the class's probability is bounded: more prove more. [DMAE: 10,000 and more]")
    ] = CertifiedConfig.n
    alpha: Annotated[float, Doc("Probability that a certificate is wrong.")] = CertifiedConfig.alpha
    radii: Annotated[tuple[float, ...], Doc("Radii at which accuracy is given.")] = CertifiedConfig.radii
    every: Annotated[int, Doc("Only every so many-th test image is certified.")] = CertifiedConfig.every
    images: Annotated[int, Doc("At most so many images, spread evenly over those; 0: all.")] = 500
    copies_at_once: Annotated[int, Doc("Noisy copies that the classifier sees at once; it changes no result.")] = 100
    budget: Annotated[LabelBudget, tyro.conf.arg(name="")] = LabelBudget()
    settings: Annotated[ClassifierConfig, PREFIX, Doc("Knobs of the classifier and its training.")]


TRAINING = (
    *(
        field.name
        for field in dataclasses.fields(TrainedOptions)
        if field.name not in {common.name for common in dataclasses.fields(EvaluationOptions)}
    ),
    "budget",
    "settings",
)
"""Options that have a meaning only where a classifier is trained."""


@dataclass(frozen=True)
class Subject:
    """One classifier to certify: which network it began with, its file, and where what is found is kept."""

    network: str
    path: Path
    folder: Path


def run(protocol: str, arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate certified`."""
    _, recipe = recipe_for(arguments)
    # DMAE fine-tunes by MAE's recipe, but never erases: its util/datasets.py drops that transform.
    recipe = replace(recipe, settings=replace(recipe.settings, erasing=0.0))
    default = Certified(run=tyro.MISSING, data=tyro.MISSING, settings=recipe.settings)
    command = parse(Certified, arguments, command="evaluate certified", default=default)
    if is_multilabel(command.data):
        raise ValueError("certificates are of images with one class each, not of a CSV of several")
    if command.settings.noise.sigma:
        raise ValueError("--sigma is the noise of training and of certifying alike; leave --task.noise.sigma out")
    path = classifier_path(command.run)
    trained_with = None if path is None else _trained_sigma(command.run)
    config = CertifiedConfig(
        sigma=first_set(command.sigma, trained_with, CertifiedConfig.sigma),
        n0=command.n0,
        n=command.n,
        alpha=command.alpha,
        radii=command.radii,
        every=command.every,
        images=command.images or None,
        batch_size=command.copies_at_once,
        seed=command.seed,
    )
    _, test = labelled(command.data)
    console = Console(soft_wrap=True, stderr=command.json)
    if path is not None:
        _refuse_training(command, default)
        subjects = [Subject(network_of(command.run), path, results_folder(command.run).path)]
        if trained_with is None:
            _say(
                console, "note: nothing says that this classifier was trained against noise; without, little is proved"
            )
    else:
        found = _train(command, config, recipe, arguments, console)
        if found is None:
            return STOPPED
        subjects = found
    try:
        scores = {subject.network: _certify(command, config, subject, test, console) for subject in subjects}
    except PartsStopped as stopped:
        _say(console, str(stopped))
        return STOPPED
    drawing = subjects[-1].folder / f"certified-{data_stem(command.data)}.svg"
    write_drawing(draw(scores, config), drawing)
    if not command.json:
        _print(command, config, scores, console)
        _say(console, f"curve:  {drawing}")
        if path is None:
            _say(console, f"model:  {subjects[-1].path}\nreport: {subjects[-1].folder / 'report.html'}")
    return 0


def _train(
    command: Certified, config: CertifiedConfig, recipe: FinetuneRecipe, arguments: Sequence[str], console: Console
) -> list[Subject] | None:
    """Fine-tune against noise; with `--floors` also from the random start. None where a signal stopped it."""
    noise = replace(command.settings.noise, sigma=config.sigma)
    if config.sigma >= 1 and given(arguments, "--task.noise.entropy") is None:
        noise = replace(noise, entropy=STRONG_NOISE_ENTROPY)
    plan = Plan(
        protocol="certified",
        settings=replace(with_size(command.settings, command), noise=noise),
        usual_batch=recipe.batch_size,
        budget=command.budget,
        fit_augmentation=recipe.settings,
        asked=named_fields(arguments),
    )
    runs = train_with_floor(command, plan, console, suffix=f"sigma-{config.sigma:g}")
    if runs is None:
        return None
    return [Subject(run.start, run.folder.path / CLASSIFIER_FILE, run.folder.path) for run in runs]


def _refuse_training(command: Certified, default: Certified) -> None:
    """ValueError for an option of training where nothing is to be trained."""
    words = {"budget": "--share and --shots", "settings": "--task.FIELD"}
    for name in TRAINING:
        if getattr(command, name) != getattr(default, name):
            option = words.get(name, f"--{name.replace('_', '-')}")
            raise ValueError(f"{command.run} is a finished classifier, so nothing is trained: leave {option} out")


def _trained_sigma(run: str) -> float | None:
    """The noise against which a finished classifier's run folder says that it was trained; None without."""
    values: Any = supervised_values(run)
    sigma = values["settings"].get("noise", {}).get("sigma") if values else None
    return float(sigma) if sigma else None


def _certify(
    command: Certified, config: CertifiedConfig, subject: Subject, test: Source, console: Console
) -> CertifiedScore:
    """Certify one classifier, given the images that an earlier call has kept; every new one is kept at once."""
    device = choose_device(command.device)
    classifier = read_single_label(subject.path, "a certificate").to(device)
    matched_labels(classifier.classes, test)
    test = in_range(test, classifier.pixel_range)
    first_readable(test, channels=classifier.channels)
    settings = {
        "weights": fingerprint(str(subject.path)),
        "data": command.data,
        "test_images": len(test),
        "sigma": config.sigma,
        "n0": config.n0,
        "n": config.n,
        "alpha": config.alpha,
        "seed": config.seed,
        "device": device.type,  # another kind of device draws other noise
    }
    kept = KeptParts(subject.folder / f"certified-{data_stem(command.data)}.jsonl", settings)
    places_M = torch.arange(0, len(test), config.every)
    chosen = places_M[evenly(len(places_M), config.images)].tolist()
    done = {image.index: image for image in (CertifiedImage(**values) for values in kept.read())}
    known = [done[index] for index in chosen if index in done]
    todo = [index for index in chosen if index not in done]
    looks = config.n0 + config.n
    rest = f", {len(known)} of them done before" if known else ""
    _say(
        console,
        f"certifying {NAMES[subject.network]}: {len(chosen)} images{rest}, {looks:,} noisy copies each: "
        f"{len(todo) * looks:,} passes through the network",
    )
    if known and not _any_readable(test.subset(todo), classifier):
        score = CertifiedScore.of(known, config, bad_files=[test.path(index) for index in todo])
    else:
        with Parts("images", total=len(chosen), done=len(known)) as parts:

            def keep(image: CertifiedImage) -> None:
                kept.add(image.as_dict())
                parts.advance(f"radius {image.radius:.2f}" if image.certified else "abstained")

            workers = workers_of(command)
            score = certify(classifier, test, config, workers=workers, device=device, done=known, on_image=keep)
    record = record_result(
        command,
        "certified",
        subject.network,
        score.as_dict(),
        settings | {"every": config.every, "images": config.images, "classifier": str(subject.path)},
    )
    if command.json:
        print_json(record)
    return score


def _any_readable(source: Source, classifier: FinishedClassifier) -> bool:
    """Whether one image of `source` can be read at all."""
    try:
        first_readable(source, channels=classifier.channels, tries=len(source))
    except ValueError:
        return False
    return True


def reach(config: CertifiedConfig) -> float:
    """The largest radius that can be proved with so many copies: where all of them are of one class."""
    return config.sigma * NormalDist().inv_cdf(config.alpha ** (1 / config.n))


def draw(scores: dict[str, CertifiedScore], config: CertifiedConfig) -> str:
    """Certified accuracy over the radius with its 95 % interval, as an `<svg>` element."""
    end = max(reach(config), 1e-9)
    radii = tuple(end * place / DRAWN for place in range(DRAWN + 1))
    fine = {network: CertifiedScore.of(score.images, replace(config, radii=radii)) for network, score in scores.items()}
    return line_chart(
        {NAMES[network]: list(zip(radii, score.accuracy, strict=True)) for network, score in fine.items()},
        title="Share of test images that are certified to keep their own class within a radius",
        x_label=f"radius, Euclidean length of the change (noise {config.sigma:g})",
        y_label="certified accuracy, %",
        bands={
            NAMES[network]: [(radius, *within) for radius, within in zip(radii, score.intervals, strict=True)]
            for network, score in fine.items()
        },
    )


def _print(command: Certified, config: CertifiedConfig, scores: dict[str, CertifiedScore], console: Console) -> None:
    first = next(iter(scores.values()))
    _say(
        console,
        f"certified of {command.run} on {command.data}: {len(first.images)} test images, noise {config.sigma:g}, "
        f"{config.n:,} copies of each, a certificate is wrong with probability {config.alpha:g}",
    )
    headers = [header for network in scores for header in (f"{NAMES[network]} %", "95 % interval")]
    table = plain_table("radius", *headers)
    for place, radius in enumerate(config.radii):
        if radius > reach(config) and radius > min(config.radii):
            continue  # nothing can be proved there, whatever the classifier
        cells = []
        for score in scores.values():
            low, high = score.intervals[place]
            cells += [f"{score.accuracy[place]:.1f}", f"{low:.1f} to {high:.1f}"]
        table.add_row(f"{radius:g}", *cells)
    console.print(table)
    for network, score in scores.items():
        _say(
            console,
            f"{NAMES[network]}: average certified radius {score.mean_radius:.3f}, abstained {score.abstained:.1f} %, "
            f"accuracy of the smoothed classifier {score.predicted:.1f} %",
        )
    if max(config.radii) > reach(config):
        _say(console, f"{config.n:,} copies prove radii up to {reach(config):.2f} at most")
    place = next((place for place, radius in enumerate(config.radii) if radius > 0), 0)
    if len(scores) == 2:
        own, other = scores["pretrained"], scores["random"]
        gap = own.accuracy[place] - other.accuracy[place]
        noise = interval_noise(own.intervals[place], other.intervals[place])
        _say(console, f"pre-trained at radius {config.radii[place]:g}: {gap_sentence(gap, noise, NAMES['random'])}")
    if first.bad_files:
        count = len(first.bad_files)
        _say(
            console,
            f"{count} {'image' if count == 1 else 'images'} could not be read, for example {first.bad_files[0]}",
        )


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, markup=False)
