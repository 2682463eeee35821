"""From JPEG bytes to a ready batch on one core of a CPU: the authors' pipelines against ours.

The same photographs (crops of scikit-learn's two samples, 500x375, quality 90, colours at half resolution, as most of
ImageNet is) through the authors' chain of Pillow and torchvision (`plain/pipelines.py`) and through ours: `CropDataset`
and its collation in this process, then the method's `make_views` on the CPU, masks included. Both end in normalised
float views. Whole batches take turns; seconds are the processor's, with one thread, so that images/s are those of one
core. "Worker" is the part that runs in a data worker and hands over bytes; with a GPU the rest runs there.

The decoders: a whole image to pixels in memory, by every library that is installed here. Ours is the last but one line,
and the last one as data workers use it: into memory used before, to the last row that a random crop needs.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.harness import Table, Timing, facts, paired_ratio, publish, take_turns
from benchmarks.plain import pipelines
from unmask.data.batch import Batch, CropConfig
from unmask.data.crop import Stream, random_box, sample_generator
from unmask.data.dataset import CropDataset
from unmask.data.decode import PixelMemory, open_image
from unmask.data.loader import collate_samples
from unmask.data.sources import Source
from unmask.methods import find_method
from unmask.methods.base import Method

HEIGHT, WIDTH = 375, 500
METHODS = ("mae", "conmim", "cmae")


def photos(count: int, *, quality: int = 90, seed: int = 0) -> list[bytes]:
    """`count` JPEG files of ImageNet's usual size: crops of two photographs at different places."""
    generator = np.random.default_rng(seed)
    samples = load_sample_images().images
    files = []
    for number in range(count):
        picture = samples[number % len(samples)]
        top, left = (
            int(generator.integers(n - size + 1)) for n, size in zip(picture.shape, (HEIGHT, WIDTH), strict=False)
        )
        file = io.BytesIO()
        cut = np.ascontiguousarray(picture[top : top + HEIGHT, left : left + WIDTH])
        Image.fromarray(cut).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        files.append(file.getvalue())
    return files


class Files(Source):
    """Files that are in memory already: reading them costs either side nothing."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.name = "photographs"
        self.labels = None
        self.classes = None
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> str:
        return f"{self.name}/{index}"

    def read(self, index: int) -> bytes:
        return self._files[index]


@dataclass
class OurPath:
    """Our way for one method; every call is another epoch."""

    method: Method[Any]
    dataset: CropDataset
    epoch: int = 0

    @classmethod
    def of(cls, name: str, files: Sequence[bytes]) -> OurPath:
        """The method as users get it, but for an encoder of one block, which the data do not pass through."""
        kind = find_method(name)
        settings = kind.Config()
        method = kind(replace(settings, encoder=replace(settings.encoder, name="vit_tiny_patch16_224", depth=1)))
        return cls(method, CropDataset(Files(files), method.crops, channels=3, seed=0))

    def worker(self) -> Batch:
        """A batch of bytes, as a data worker hands it over."""
        self.epoch += 1
        return collate_samples([self.dataset[self.epoch, index] for index in range(len(self.dataset))])

    def views(self) -> Any:
        """A batch as the method's losses take it."""
        return self.method.make_views(replace(self.worker(), seed=self.epoch))


def measure_pipelines(files: Sequence[bytes], *, rounds: int) -> dict[str, dict[str, Timing]]:
    """For each method the seconds of the authors' way, of ours, and of our data worker alone."""
    timings = {}
    for name in METHODS:
        random.seed(0)
        torch.manual_seed(0)
        ours = OurPath.of(name, files)
        theirs = partial(pipelines.batch, pipelines.PIPELINES[name](), files)
        timings[name] = take_turns({"authors": theirs, "ours": ours.views, "worker": ours.worker}, rounds=rounds)
    return timings


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """The decoders that are installed, each from bytes to an array or tensor of all pixels; ours last."""
    from torchvision.io import decode_jpeg

    found: dict[str, Callable[[bytes], Any]] = {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        "torchvision.io": lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        found["imagecodecs"] = imagecodecs.jpeg8_decode
    if importlib.util.find_spec("kornia_rs"):
        import kornia_rs

        found["kornia-rs"] = partial(kornia_rs.decode_image_jpeg, image_shape=(HEIGHT, WIDTH), mode="rgb")
    import simplejpeg

    found["simplejpeg, fast and coarser"] = partial(simplejpeg.decode_jpeg, fastdct=True, fastupsample=True)
    memory = PixelMemory()
    found["ours"] = lambda data: open_image(data).decode(min_size=None, channels=3)
    found["ours, in a data worker"] = partial(_decode_for_crop, memory)
    return found


def _decode_for_crop(memory: PixelMemory, data: bytes) -> None:
    opened = open_image(data)
    # The file's own box: the same in every round.
    top, _, height, _ = random_box(sample_generator(0, 0, len(data), Stream.CROP), opened.height, opened.width, _CROP)
    with memory.lent(opened.bytes_needed(3)) as pixel_memory:
        opened.decode(min_size=None, channels=3, last_row=top + height, memory=pixel_memory)


_CROP = CropConfig()


def measure_decoders(files: Sequence[bytes], *, rounds: int) -> dict[str, Timing]:
    """Seconds for all files by each decoder."""
    entries = {name: partial(_all, decode, files) for name, decode in decoders().items()}
    return take_turns(entries, rounds=rounds)


def _all(decode: Callable[[bytes], Any], files: Sequence[bytes]) -> None:
    for data in files:
        decode(data)


def pipeline_table(timings: Mapping[str, Mapping[str, Timing]], images: int, caption: str) -> Table:
    """Images/s of one core, and how many times ours are the authors'."""
    rows = []
    for name, entries in timings.items():
        authors, ours, worker = (entries[entry] for entry in ("authors", "ours", "worker"))
        rows.append(
            (
                name,
                images / authors.cpu_seconds,
                images / ours.cpu_seconds,
                paired_ratio(authors.cpu, ours.cpu),
                images / worker.cpu_seconds,
                paired_ratio(authors.cpu, worker.cpu),
            )
        )
    columns = ("method", "authors, images/s", "ours, images/s", "ratio", "worker alone, images/s", "ratio ")
    return Table(caption, columns, tuple(rows))


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="images of a batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--qualities", type=int, nargs="+", default=[90, 95], help="of the JPEG files")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables, raw = [], {}
    for quality in arguments.qualities:
        files = photos(arguments.images, quality=quality)
        kib = statistics.mean(len(data) for data in files) / 1024
        timings = measure_pipelines(files, rounds=arguments.rounds)
        decoding = measure_decoders(files, rounds=arguments.rounds)
        what = f"JPEG of quality {quality}, {kib:.0f} KiB on average, one core"
        tables.append(pipeline_table(timings, arguments.images, f"{what}: bytes to normalised views."))
        rows = [
            (
                name,
                1000 * timing.cpu_seconds / arguments.images,
                paired_ratio(decoding["Pillow"].cpu, timing.cpu),
            )
            for name, timing in decoding.items()
        ]
        tables.append(Table(f"{what}: decoding alone.", ("decoder", "ms an image", "times Pillow"), tuple(rows)))
        raw[f"quality {quality}"] = {
            "pipelines": {
                name: {entry: timing.cpu for entry, timing in entries.items()} for name, entries in timings.items()
            },
            "decoders": {name: timing.cpu for name, timing in decoding.items()},
        }
    publish(
        "data_path",
        tables,
        out=arguments.out,
        facts=facts(seed=0, images=arguments.images, rounds=arguments.rounds),
        raw=raw,
    )


if __name__ == "__main__":
    main()
