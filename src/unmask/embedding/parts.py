"""Parts of a file of features that is still being made: a hidden folder beside it, each part whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from unmask.data.shard_writing import write_atomically, writing
from unmask.embedding.header import Plan, difference
from unmask.training.run_lock import sole_owner

_PLAN = "plan.json"
_BAD = "bad"
_FLOATS = ("float32", "float16")


@dataclass(frozen=True)
class Part:
    """Features of the readable ones among some consecutive images, their positions, and the bad files by name."""

    features: NDArray[Any]
    index_N: NDArray[np.int64]
    bad: Mapping[str, str]


class PartFolder:
    """The parts of `out`, numbered from 0."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(f".{out.name}.parts")
        self._new_home = not out.parent.exists()

    @contextmanager
    def claimed(self, plan: Plan) -> Iterator[None]:
        """Own the folder within this context, for this plan alone.

        ValueError where another process owns it, or parts of another plan lie there.
        """
        with writing(self.out):
            self.path.mkdir(parents=True, exist_ok=True)
        with sole_owner(self.path):
            held = self._plan()
            if held is None:
                with writing(self.out):
                    write_atomically(self.path / _PLAN, _written(plan))
            elif held != json.loads(_written(plan)):
                raise ValueError(
                    f"{self.out} was begun otherwise ({_told(held, plan)}); give what you gave then, choose another "
                    f"--out, or remove {self.path}"
                )
            yield
        with suppress(OSError):  # empty, where all is done
            self.path.rmdir()

    def finished(self) -> int:
        """How many parts are there, from the first on without a gap."""
        number = 0
        while self._file(number).exists():
            number += 1
        return number

    def add(self, number: int, part: Part) -> None:
        """Write a part. ValueError where the disk refuses."""
        tensors = {"features": np.ascontiguousarray(part.features), "index": part.index_N}
        with writing(self.out):
            write_atomically(self._file(number), save(tensors, metadata={_BAD: json.dumps(dict(part.bad))}))

    def read(self, number: int) -> Part:
        """A part. ValueError where it is damaged."""
        bad = self.bad(number)
        with safe_open(self._file(number), framework="np") as file:
            return Part(file.get_tensor("features"), file.get_tensor("index"), bad)

    def rows(self, number: int) -> int:
        """How many images of a part have features."""
        with self._opened(number) as file:
            return int(file.get_slice("index").get_shape()[0])

    def bad(self, number: int) -> dict[str, str]:
        """The bad files of a part."""
        with self._opened(number) as file:
            bad: dict[str, str] = json.loads(file.metadata()[_BAD])
            return bad

    def clear(self) -> None:
        """Remove all parts: they are not needed any more. Its owner's note goes with its owner."""
        for path in (self.path / _PLAN, *self.path.glob("*.safetensors"), *self.path.glob(".*.part")):
            path.unlink(missing_ok=True)

    def give_up(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._new_home:
            with suppress(OSError):
                self.out.parent.rmdir()

    @contextmanager
    def _opened(self, number: int) -> Iterator[Any]:
        try:
            with safe_open(self._file(number), framework="np") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self._file(number)} is damaged; remove it, and the same command goes on") from error

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06d}.safetensors"

    def _plan(self) -> Any:
        with suppress(OSError, ValueError):
            return json.loads((self.path / _PLAN).read_bytes())
        return None


def _written(plan: Plan) -> bytes:
    return json.dumps(asdict(plan)).encode()


def _told(held: Any, plan: Plan) -> str:
    with suppress(KeyError, TypeError, ValueError):
        values = dict(held)
        recipe = dict(values.pop("recipe"))
        kind = type(plan.recipe)
        recipe["image_size"] = tuple(recipe["image_size"])
        return difference(Plan(recipe=kind(**recipe), **values), plan) or "otherwise"
    return "its plan is damaged"
