"""Features of all images of a source into one file: part by part, never all in memory, resumed after a kill.

A part is a fixed run of positions in the data and a whole number of batches, so whichever parts were finished before,
the others come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from unmask import __version__
from unmask.data.bad_files import TooManyBadFiles, are_too_many, too_many
from unmask.data.loader import EvalLoader
from unmask.data.pixel_range import in_range
from unmask.data.shard_writing import write_atomically, writing
from unmask.data.sharding import names_checksum
from unmask.data.sources import Source
from unmask.embedding.files import check_name, open_features, write_features
from unmask.embedding.header import Header, Plan, Precision, difference
from unmask.embedding.parts import Part, PartFolder
from unmask.embedding.recipe import Extractor
from unmask.embedding.rows import Block, Row
from unmask.evaluation.features import check_finite
from unmask.models.products import usual_products

PART_BYTES = 1 << 26
"""Features of a part stay below this, unless one batch is more."""


class EmbeddingStopped(Exception):
    """Stopped on request; finished parts stay."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How features are stored and made, beside what they are."""

    precision: Annotated[Precision, Doc("Type of the stored numbers; they are computed in fp32.")] = "fp32"
    batch_size: Annotated[int, Doc("Images that go through the encoder at once.")] = 64
    part_size: Annotated[int, Doc("Images that are kept at once; a kill loses at most so many. Fewer for maps.")] = 1024
    max_bad_share: Annotated[float, Doc("Share of unreadable images past which nothing is written.")] = 0.1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.part_size < 1:
            raise ValueError("--batch-size and --part-size must be at least 1")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"--max-bad-share must lie in [0, 1], got {self.max_bad_share}")


@dataclass
class _Pending:
    """The part that is being made."""

    features: list[Tensor] = field(default_factory=list)
    indices: list[Tensor] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)


class Embedding:
    """Images on their way into a file of features."""

    def __init__(
        self,
        extractor: Extractor,
        source: Source,
        out: Path,
        config: EmbedConfig,
        *,
        encoder: str,
        data: str,
        split: str,
    ) -> None:
        """`encoder` and `data` are as the user named them. ValueError where `out` cannot be such a file."""
        check_name(out)
        self.extractor = extractor
        self.source = in_range(source, extractor.encoder.pixel_range)
        self.out = out
        self.config = config
        self.encoder = encoder
        bytes_each = 2 * int(np.prod(extractor.shape)) * (2 if config.precision == "fp32" else 1)
        batches = min(config.part_size, PART_BYTES // bytes_each) // config.batch_size
        self.plan = Plan(
            recipe=extractor.recipe,
            data=data,
            split=split,
            names=names_checksum(source),
            precision=config.precision,
            batch_size=config.batch_size,
            part_size=max(1, batches) * config.batch_size,
        )
        self._folder = PartFolder(out)

    @property
    def parts(self) -> int:
        """How many parts there are to be."""
        return -(-len(self.source) // self.plan.part_size)

    @property
    def bad_file(self) -> Path:
        """The list of images that could not be read: a name and a reason a line."""
        return self.out.with_name(f"{self.out.name}.bad_files.txt")

    def finished(self) -> Header | None:
        """The header of the file where it is there already; None where it is not.

        ValueError where it is another one.
        """
        if not self.out.exists():
            return None
        header = open_features(self.out).header
        other = difference(header.plan, self.plan)
        if other is not None:
            raise ValueError(f"{self.out} exists and holds other features ({other}); choose another --out")
        self._folder.give_up()  # of a process that was killed between its last two steps
        return header

    def write(
        self, *, workers: int, stop: Callable[[], bool] = lambda: False, report: Callable[[int, int], None]
    ) -> Header:
        """Make the file; returns its header. `report` is told how many images were looked at, and how many of them
        by an earlier process.

        Raises EmbeddingStopped when `stop()` says so, TooManyBadFiles, ValueError for features that are not finite or
        do not fit the precision, and where the disk refuses. Finished parts stay then.
        """
        try:
            with self._folder.claimed(self.plan):
                self._make_parts(workers, stop, report)
                header = self._join()
                self._folder.clear()
        except TooManyBadFiles:
            if not self._folder.finished():
                self._folder.give_up()
            raise
        return header

    def _make_parts(self, workers: int, stop: Callable[[], bool], report: Callable[[int, int], None]) -> None:
        first = min(self._folder.finished(), self.parts)
        begin = first * self.plan.part_size
        bad = begin - sum(self._folder.rows(number) for number in range(first))
        height, width = self.plan.recipe.image_size
        loader = EvalLoader(
            self.source,
            height=height,
            width=width,
            channels=self.extractor.channels,
            batch_size=self.plan.batch_size,
            workers=workers,
        )
        seen, pending = begin, _Pending()
        with torch.no_grad(), usual_products():
            for batch, newly_bad in loader.everything(begin) if begin < len(self.source) else ():
                if batch is not None:
                    pending.features.append(self._stored(self.extractor(batch.crops[0][:, 0])))
                    pending.indices.append(batch.indices)
                pending.bad |= {note.path: note.reason for note in newly_bad}
                bad += len(newly_bad)
                seen += (0 if batch is None else len(batch.indices)) + len(newly_bad)
                self._judge(seen, bad, pending.bad)
                if seen % self.plan.part_size == 0 or seen == len(self.source):
                    self._folder.add((seen - 1) // self.plan.part_size, self._part(pending))
                    pending = _Pending()
                report(seen, begin)
                if stop():
                    raise EmbeddingStopped

    def _judge(self, seen: int, bad: int, notes: dict[str, str]) -> None:
        """Raise where too many of the images seen are bad; `notes` names some of the latest."""
        example = "".join(f"{path}: {reason}" for path, reason in list(notes.items())[-1:])
        if bad == len(self.source):
            told = f", for example {example}" if example else ""
            raise TooManyBadFiles(f"no readable image in {self.source.name}{told}")
        most = self.config.max_bad_share
        if are_too_many(bad, seen=seen, total=len(self.source), most=most):
            raise too_many(bad, seen=seen, most=most, example=example)

    def _stored(self, features: Tensor) -> Tensor:
        """Features in the type that is stored. ValueError where they are not finite, or too large for it."""
        check_finite(features.flatten(1))
        if self.config.precision == "fp32":
            return features
        halves = features.half()
        if not torch.isfinite(halves).all():
            raise ValueError("some features are beyond 65504, the largest number of fp16: use --precision fp32")
        return halves

    def _part(self, pending: _Pending) -> Part:
        if not pending.features:
            dtype = np.float32 if self.config.precision == "fp32" else np.float16
            empty: NDArray[np.int64] = np.empty(0, dtype=np.int64)
            return Part(np.empty((0, *self.extractor.shape), dtype=dtype), empty, pending.bad)
        return Part(torch.cat(pending.features).numpy(), torch.cat(pending.indices).numpy(), pending.bad)

    def _join(self) -> Header:
        encoder = self.extractor.encoder
        numbers = range(self.parts)
        images = sum(self._folder.rows(number) for number in numbers)
        header = Header(
            plan=self.plan,
            encoder=self.encoder,
            method=encoder.method,
            channels=self.extractor.channels,
            mean=encoder.mean,
            std=encoder.std,
            shape=self.extractor.shape,
            classes=self.source.classes if self.source.labels is not None else None,
            images=images,
            bad_files=len(self.source) - images,
            version=__version__,
            pixel_range=encoder.pixel_range,
        )
        bad = (self._folder.bad(number).items() for number in numbers)
        lines = "".join(f"{name}\t{reason}\n" for part in bad for name, reason in part)
        with writing(self.out):
            if lines:
                write_atomically(self.bad_file, lines.encode("utf-8", "backslashreplace"))
            else:
                self.bad_file.unlink(missing_ok=True)
        write_features(self.out, header, self._blocks)
        return header

    def _blocks(self) -> Iterator[Block]:
        """The parts that hold anything, with the names and labels of their images."""
        labels = self.source.labels
        for number in range(self.parts):
            part = self._folder.read(number)
            rows = [
                Row(index=index, path=self.source.path(index), label=None if labels is None else int(labels[index]))
                for index in part.index_N.tolist()
            ]
            if rows:
                yield Block(part.features, rows)
