"""What a source of images holds, before anything is trained: sizes, kinds, channels, damage, copies.

Every file is read, or so many that are spread over the source; of these some are decoded. Nothing is decided here: the
numbers are for people (`unmask.report.survey_words`) and programs (`Survey.as_dict`).
Shape legend: N images that can be read, C channels, L levels of 8 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float64, Int64
from typing_extensions import Doc

from unmask.data.dataset import BadFile
from unmask.data.halves import Halves
from unmask.data.likeness import Likeness, look_alike
from unmask.data.looks import Look, looks
from unmask.data.statistics import LEVELS, moments

COMPARED = 50_000
"""Decoded images that are compared with each other at most; twice as many take four times as long."""


@dataclass(frozen=True, kw_only=True)
class SurveyConfig:
    """How much of a source is looked at."""

    read: Annotated[int | None, Doc("Files that are read, spread over the source; None: all.")] = None
    decoded: Annotated[int | None, Doc("Files of those that are decoded, too; None: all.")] = 2000
    workers: Annotated[int, Doc("Processes that read and decode; 0: this one.")] = 0

    def __post_init__(self) -> None:
        for value in (self.read, self.decoded):
            if value is not None and value < 1:
                raise ValueError(f"the number of images to look at must be 1 or more, got {value}")
        if self.workers < 0:
            raise ValueError(f"the number of workers must be 0 or more, got {self.workers}")


@dataclass(frozen=True)
class Values:
    """The decoded images of one number of channels: how many, and the shares of the levels over all their pixels."""

    count: int
    shares_CL: Float64[np.ndarray, "C 256"]

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of each channel, in [0, 1]; every image counts the same."""
        return moments(self.shares_CL)


@dataclass(frozen=True)
class Group:
    """Images that are the same (`exact`), or look nearly so, by their positions in the source."""

    positions: tuple[int, ...]
    exact: bool


@dataclass(frozen=True)
class Survey:
    """What was found. Positions are those in `halves.images`."""

    halves: Halves
    read: int
    decoded: int
    positions_N: Int64[np.ndarray, " N"]
    sizes_N2: Int64[np.ndarray, "N 2"]
    bytes_N: Int64[np.ndarray, " N"]
    kinds: Counter[str]
    dtypes: Counter[str]
    values: dict[int, Values]
    grey: int
    uniform: int
    shown: tuple[int, ...]
    bad: tuple[BadFile, ...]
    groups: tuple[Group, ...]
    compared: int

    @property
    def leaks(self) -> tuple[Group, ...]:
        """Groups with images in the training half and in the test half."""
        first = self.halves.training if self.halves.judged else 0
        return tuple(group for group in self.groups if min(group.positions) < first <= max(group.positions))

    def copies(self, *, exact: bool) -> int:
        """How many images are in groups, not counting the first of each."""
        return sum(len(group.positions) - 1 for group in self.groups if group.exact == exact)

    def smaller_than(self, height: int, width: int) -> float:
        """The share of images that a crop of this size has to enlarge."""
        return float(np.mean((self.sizes_N2[:, 0] < height) | (self.sizes_N2[:, 1] < width)))

    def longer_than(self, ratio: float) -> float:
        """The share of images whose longer side is more than `ratio` times the shorter one."""
        return float(np.mean(self.sizes_N2.max(axis=1) > ratio * self.sizes_N2.min(axis=1)))

    def as_dict(self) -> dict[str, Any]:
        """All of it, for programs; images by their names."""
        halves, name = self.halves, self.halves.images.path
        heights, widths = self.sizes_N2.T
        return {
            "data": halves.pretraining.name,
            "kind": halves.pretraining.kind,
            "images": {"pretraining": len(halves.pretraining), "training": halves.training, "testing": halves.testing},
            "classes": {
                name: {"training": training, "testing": testing} for name, training, testing in halves.class_counts
            },
            "read": self.read,
            "decoded": self.decoded,
            "bad_files": {note.path: note.reason for note in self.bad},
            "height": _spread(heights),
            "width": _spread(widths),
            "bytes": {**_spread(self.bytes_N), "total": int(self.bytes_N.sum())},
            "formats": dict(self.kinds.most_common()),
            "dtypes": dict(self.dtypes.most_common()),
            "grey": self.grey,
            "uniform": self.uniform,
            "channels": {
                str(channels): {
                    "images": values.count,
                    "mean": list(values.mean_and_std[0]),
                    "std": list(values.mean_and_std[1]),
                }
                for channels, values in self.values.items()
            },
            "duplicates": [[name(place) for place in group.positions] for group in self.groups if group.exact],
            "near_duplicates": [[name(place) for place in group.positions] for group in self.groups if not group.exact],
            "in_both_halves": [[name(place) for place in group.positions] for group in self.leaks],
        }


def survey(
    halves: Halves,
    config: SurveyConfig,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Look at the images. `report` is told how many were looked at, of how many.

    ValueError where none of them can be used; WorkerDied where a process ended that should not have.
    """
    source = halves.images
    positions = spread_over(len(source), config.read)
    decoded = np.zeros(len(positions), dtype=np.bool_)
    decoded[spread_over(len(positions), config.decoded)] = True
    tally, done = _Tally(), 0
    for found in looks(source, positions, decoded, workers=config.workers):
        for look in found:
            tally.add(look)
        done += len(found)
        report(done, len(positions))
    return tally.survey(halves, read=len(positions), decoded=int(decoded.sum()))


class _Tally:
    """What was seen so far."""

    def __init__(self) -> None:
        self.bad: list[BadFile] = []
        self.rows: list[tuple[int, int, int, int]] = []
        self.kinds: Counter[str] = Counter()
        self.dtypes: Counter[str] = Counter()
        self.values: dict[int, tuple[int, Float64[np.ndarray, "C 256"]]] = {}
        self.grey = self.uniform = 0
        self.by_digest: dict[bytes, list[int]] = {}
        self.likenesses: list[tuple[int, bytes, Likeness]] = []

    def add(self, look: Look | BadFile) -> None:
        """Count one image."""
        if isinstance(look, BadFile):
            self.bad.append(look)
            return
        self.rows.append((look.index, look.height, look.width, look.size))
        self.kinds[look.kind] += 1
        self.by_digest.setdefault(look.digest, []).append(look.index)
        pixels = look.pixels
        if pixels is None:
            return
        self.dtypes[pixels.dtype] += 1
        count, shares_CL = self.values.get(pixels.channels, (0, np.zeros((pixels.channels, LEVELS))))
        self.values[pixels.channels] = count + 1, shares_CL + pixels.shares_CL
        self.grey += pixels.channels > 1 and pixels.grey
        self.uniform += bool((pixels.shares_CL.max(axis=1) == 1).all())
        self.likenesses.append((look.index, look.digest, pixels.likeness))

    def survey(self, halves: Halves, *, read: int, decoded: int) -> Survey:
        """The whole of it. ValueError where there is no image that can be used."""
        if not self.rows:
            example = f", for example {self.bad[-1].path}: {self.bad[-1].reason}" if self.bad else ""
            raise ValueError(f"no readable image in {halves.images.name}{example}")
        rows_N4 = np.array(self.rows, dtype=np.int64)
        good = [place for place, _, _ in self.likenesses] or rows_N4[:, 0].tolist()
        exact = [Group(tuple(group), True) for group in self.by_digest.values() if len(group) > 1]
        near, compared = self._near()
        return Survey(
            halves=halves,
            read=read,
            decoded=decoded,
            positions_N=rows_N4[:, 0],
            sizes_N2=rows_N4[:, 1:3],
            bytes_N=rows_N4[:, 3],
            kinds=self.kinds,
            dtypes=self.dtypes,
            values={
                channels: Values(count, shares_CL / count)
                for channels, (count, shares_CL) in sorted(self.values.items(), key=lambda item: -item[1][0])
            },
            grey=self.grey,
            uniform=self.uniform,
            shown=tuple(good),
            bad=tuple(self.bad),
            groups=tuple(sorted([*exact, *near], key=lambda group: (not group.exact, -len(group.positions)))),
            compared=compared,
        )

    def _near(self) -> tuple[list[Group], int]:
        """Groups of images that look nearly the same, of exact copies the first; and how many images were compared."""
        firsts = {digest: (place, found) for place, digest, found in reversed(self.likenesses)}
        ordered = sorted(firsts.values(), key=lambda item: item[0])
        ordered = [ordered[place] for place in spread_over(len(ordered), COMPARED)]
        groups = look_alike([found for _, found in ordered])
        return [Group(tuple(ordered[place][0] for place in group), False) for group in groups], len(ordered)


def spread_over(total: int, count: int | None) -> Int64[np.ndarray, " N"]:
    """`count` ascending positions, evenly spread; all where there are no more."""
    if count is None or count >= total:
        return np.arange(total)
    return np.linspace(0, total - 1, count).astype(np.int64)


def _spread(values_N: Int64[np.ndarray, " N"]) -> dict[str, float]:
    return {"smallest": int(values_N.min()), "median": float(np.median(values_N)), "largest": int(values_N.max())}
