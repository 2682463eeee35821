"""What was found in a source of images, in words: a table of facts, and sentences about what is worth a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from typing_extensions import Doc

from unmask.data.halves import Halves
from unmask.data.stored import PixelRange
from unmask.data.survey import Group, Survey
from unmask.report.text import count, number

FEW = 1000
"""Fewer images than these rarely make an encoder that is better than one that others have trained."""
TINY = 32
"""Images of fewer pixels a side hold too little for patches that mean something."""
LONG = 3.0
"""From this ratio of the sides on a square crop sees only a piece of the image."""
LARGE = 3000
"""Images with more pixels a side take longer to decode than a step of training takes."""
UNEVEN = 10
"""A class with so many times as many images as another one decides a mean over images."""
CHANNELS_SHOWN = 8
BAD_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `unmask pretrain DATA` would do, or the sentence by which it would refuse."""

    crop: Annotated[tuple[int, int] | None, Doc("Height and width of the crops.")] = None
    channels: Annotated[int, Doc("Channels that the encoder takes.")] = 3
    max_bad_share: Annotated[float, Doc("Share of bad files past which the run would stop.")] = 0.1
    pixel_range: Annotated[PixelRange | None, Doc("What becomes black and white in images of more than 8 bits.")] = None
    rows: Annotated[Mapping[str, str], Doc("What would be done, in words.")] = field(default_factory=dict)
    values: Annotated[Mapping[str, Any], Doc("The same for programs.")] = field(default_factory=dict)
    refusal: Annotated[str, Doc("Why it would do nothing; empty where it would.")] = ""


def fact_rows(survey: Survey) -> dict[str, str]:
    """The facts by their names, in the order of reading."""
    halves = survey.halves
    rows = {
        "kind": halves.pretraining.kind,
        "images": _images(halves),
        "classes": _classes(halves),
        "captions": _captions(halves),
        "looked at": looked_at(survey),
        "bad files": _bad(survey),
        "sizes": _sizes(survey),
        "sides": _aspect(survey),
        "files": f"{_listed(survey.kinds)}; {data_size(int(survey.bytes_N.sum()))}, "
        f"{data_size(float(np.median(survey.bytes_N)))} each (median)",
        "pixels": _pixels(survey),
        "range": _range(survey),
        **_values(survey),
        "copies": _copies(survey),
        "in both halves": _leaks(survey),
    }
    return {name: words for name, words in rows.items() if words}


def looked_at(survey: Survey) -> str:
    """How much of the source the facts rest on."""
    total = len(survey.halves.images)
    read = "all files were read" if survey.read == total else f"{count(survey.read)} of {count(total)} files were read"
    if survey.decoded == total:
        return "all files were read and decoded"
    return f"{read}, {count(survey.decoded)} of {count(total)} decoded"


def warnings(survey: Survey, plan: Plan) -> list[str]:
    """What is worth a look before training, in plain sentences."""
    found = []
    if plan.refusal:
        found.append(f"unmask pretrain would refuse: {plan.refusal}.")
    found += [*_about_files(survey, plan), *_about_sizes(survey, plan)]
    return [*found, *_about_pixels(survey, plan), *_about_copies(survey)]


def _about_files(survey: Survey, plan: Plan) -> list[str]:
    found, halves = [], survey.halves
    share = len(survey.bad) / survey.read
    if share > plan.max_bad_share:
        found.append(
            f"{share:.0%} of the files cannot be used: a run stops at more than {plan.max_bad_share:.0%} "
            "(--max-bad-share)."
        )
    elif survey.bad:
        found.append(f"{_of(len(survey.bad), 'file')} cannot be used; a run passes over such files and names them.")
    if len(halves.pretraining) < FEW:
        found.append(
            f"{_are(len(halves.pretraining), 'image')} very few for pre-training: an encoder that others have trained "
            "is the better start (--from-weights timm:NAME)."
        )
    sizes = [training for _, training, _ in halves.class_counts if training]
    if not halves.refusal and max(sizes) >= UNEVEN * min(sizes):
        small = min(halves.class_counts, key=lambda row: row[1] or np.inf)
        large = max(halves.class_counts, key=lambda row: row[1])
        found.append(
            f"Classes differ much in size: {large[0]} has {_of(large[1], 'training image')}, {small[0]} "
            f"{count(small[1])}."
        )
    return found


def _about_sizes(survey: Survey, plan: Plan) -> list[str]:
    found = []
    height, width = np.median(survey.sizes_N2, axis=0)
    if min(height, width) < TINY:
        found.append(
            f"The images are tiny ({number(width)} x {number(height)} pixels): much of what is published about "
            "pre-training does not hold there."
        )
    if min(height, width) > LARGE:
        found.append(
            f"The images are large ({number(width)} x {number(height)} pixels): decoding them decides the speed, and "
            "copies of 500 pixels or so would train as well."
        )
    if plan.crop is not None:
        much = survey.smaller_than(plan.crop[0] // 2, plan.crop[1] // 2)
        if much > 0.05:
            found.append(
                f"{much:.0%} of the images have less than half as many pixels a side as the crops of {plan.crop[1]} x "
                f"{plan.crop[0]}: they are enlarged (--image-size)."
            )
    long = survey.longer_than(LONG)
    if long > 0.05:
        found.append(
            f"{long:.0%} of the images have one side more than {LONG:g} times the other: a square crop sees a piece of "
            "them."
        )
    return found


def _about_pixels(survey: Survey, plan: Plan) -> list[str]:
    found = []
    decoded = sum(values.count for values in survey.values.values())
    coloured = decoded - (survey.values[1].count if 1 in survey.values else 0)
    if decoded and survey.grey + decoded - coloured >= 0.95 * decoded and plan.channels == 3:
        stored = "are grey" if not survey.grey else "are grey, though stored in colour"
        found.append(f"Nearly all images {stored}: --channels 1 spares two thirds of the work on pixels.")
    elif coloured and survey.grey > 0.05 * coloured:
        found.append(f"{survey.grey / coloured:.0%} of the images in colour have nothing but grey in them.")
    if not set(survey.values) <= {1, 3} and len(survey.values) > 1:
        parts = ", ".join(f"{channels} ({count(values.count)} images)" for channels, values in survey.values.items())
        found.append(f"The images do not have the same number of channels: {parts}. A run takes those of one number.")
    if survey.uniform:
        found.append(f"{_are(survey.uniform, 'decoded image')} of one colour: there is nothing to learn from them.")
    return found


def _about_copies(survey: Survey) -> list[str]:
    found = []
    exact, near = (survey.copies(exact=kind) for kind in (True, False))
    if exact:
        found.append(f"{_are(exact, 'image')} the same as another one, to the last bit.")
    if near > 0.05 * max(1, survey.compared):
        found.append(f"{_of(near, 'image')} look nearly like others, of {count(survey.compared)} compared.")
    for kind, words in ((True, "the same"), (False, "nearly the same")):
        leaks = [group for group in survey.leaks if group.exact == kind]
        if leaks:
            found.append(
                f"{_are(_tested(leaks, survey), 'test image')} {words} as one for training: an evaluation would be "
                "too kind."
            )
    return found


def _tested(groups: list[Group], survey: Survey) -> int:
    return sum(place >= survey.halves.training for group in groups for place in group.positions)


def _images(halves: Halves) -> str:
    total = count(len(halves.pretraining))
    if halves.apart:
        return f"{total} for pre-training, {count(halves.testing)} more kept for testing"
    if not halves.judged:
        return total
    return f"{total}; an evaluation would train on {count(halves.training)} of them and test on {count(halves.testing)}"


def _classes(halves: Halves) -> str:
    if not halves.class_counts:
        return "none: no folder a class, no labels"
    sizes = [training + testing for _, training, testing in halves.class_counts]
    low, high = count(min(sizes)), count(max(sizes))
    each = f"{low} images each" if low == high else f"{low} to {high} images each"
    doubt = f"; no evaluation by labels: {halves.refusal}" if halves.refusal else ""
    return f"{count(len(sizes))}, of {each}{doubt}"


def _captions(halves: Halves) -> str:
    told = halves.captions
    if told.trouble:
        return told.trouble
    return f"{count(told.texts)} for all {count(told.images)} images" if told.images else ""


def _bad(survey: Survey) -> str:
    return "none" if not survey.bad else f"{count(len(survey.bad))} of {count(survey.read)}"


def _sizes(survey: Survey) -> str:
    sizes_N2 = survey.sizes_N2
    order = np.argsort(sizes_N2.prod(axis=1), kind="stable")
    smallest, largest = sizes_N2[order[0]], sizes_N2[order[-1]]
    if (sizes_N2 == smallest).all():
        return f"all {smallest[1]} x {smallest[0]} pixels (width x height)"
    median = np.median(sizes_N2, axis=0)
    return (
        f"{smallest[1]} x {smallest[0]} to {largest[1]} x {largest[0]} pixels (width x height), "
        f"median {number(median[1])} x {number(median[0])}"
    )


def _aspect(survey: Survey) -> str:
    ratios_N = survey.sizes_N2[:, 1] / survey.sizes_N2[:, 0]
    low, middle, high = (number(round(float(value), 2)) for value in np.quantile(ratios_N, (0, 0.5, 1)))
    return "" if low == high else f"width is {low} to {high} times the height, median {middle}"


def _pixels(survey: Survey) -> str:
    if not survey.values:
        return ""
    names = {1: "grey", 3: "colour"}
    channels = Counter(
        {names.get(channels, f"{channels} channels"): values.count for channels, values in survey.values.items()}
    )
    return f"{_listed(channels)}; {_listed(survey.dtypes)}"


def _range(survey: Survey) -> str:
    pixel_range = survey.halves.images.pixel_range
    return "" if pixel_range is None else f"{pixel_range} become black to white, where pixels have more than 8 bits"


def _values(survey: Survey) -> dict[str, str]:
    """Mean and deviation of the channels of most images."""
    if not survey.values:
        return {}
    mean, std = next(iter(survey.values.values())).mean_and_std
    more = ", ..." if len(mean) > CHANNELS_SHOWN else ""
    told = (", ".join(f"{value:.3f}" for value in values[:CHANNELS_SHOWN]) for values in (mean, std))
    mean_words, std_words = told
    return {"mean": f"{mean_words}{more} (of each channel, from 0 to 1)", "deviation": f"{std_words}{more}"}


def _copies(survey: Survey) -> str:
    exact = [group for group in survey.groups if group.exact]
    near = [group for group in survey.groups if not group.exact]
    copied, alike = "no exact copy", "no near copy"
    if exact:
        copied = f"{_of(survey.copies(exact=True), 'exact copy', 'exact copies')}, in {_of(len(exact), 'group')}"
    if near:
        alike = f"{_of(survey.copies(exact=False), 'near copy', 'near copies')}, in {_of(len(near), 'group')}"
    return f"{copied}; {alike} ({count(survey.compared)} compared)" if survey.compared else copied


def _leaks(survey: Survey) -> str:
    if not survey.halves.judged:
        return ""
    exact = _tested([group for group in survey.leaks if group.exact], survey)
    near = _tested([group for group in survey.leaks if not group.exact], survey)
    if not exact and not near:
        return "no image of the training half was found again in the test half"
    return f"{_are(exact, 'test image')} for training, too; {count(near)} nearly so"


def _listed(counts: Counter[str]) -> str:
    """Names with their numbers, the most frequent first; a single one needs none."""
    if len(counts) == 1:
        return f"all {next(iter(counts))}"
    return ", ".join(f"{name} ({count(many)})" for name, many in counts.most_common())


def _of(many: int, one: str, more: str = "") -> str:
    return f"{count(many)} {one if many == 1 else more or f'{one}s'}"


def _are(many: int, one: str) -> str:
    return f"{_of(many, one)} {'is' if many == 1 else 'are'}"


def data_size(size: float) -> str:
    """Bytes as a person reads them: 1 234 567 as `1.2 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
