"""What robustness is measured of: a classifier, its classes matched to those of a test set, and its predictions.

Shape legend: B images of a batch, N images, C channels, H x W pixels, K classes of the classifier, J of them that
count, M images chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from unmask.data.dataset import Retouch
from unmask.data.loader import EvalLoader
from unmask.data.pixel_range import PixelRange, in_range
from unmask.data.sources import Source
from unmask.evaluation.metrics import Score, rank_classes, score_ranking


@runtime_checkable
class Classifier(Protocol):
    """A finished classifier in eval mode: its author normalises and runs it where it is."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of the class of each logit."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images it takes, in pixels."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the images it takes."""
        ...

    @property
    def pixel_range(self) -> PixelRange | None:
        """What becomes black and white of images with more than 8 bits."""
        ...

    @property
    def crop_ratio(self) -> float | None:
        """Share of an image that it is shown, see `center_crop`."""
        ...

    def __call__(self, images_BCHW: UInt8[Tensor, "B C H W"], /) -> Float[Tensor, "B K"]:
        """Logits of uint8 images, as float32 on the CPU."""
        ...

    def noisy_logits(
        self, images_BCHW: UInt8[Tensor, "B C H W"], noise_BCHW: Float[Tensor, "B C H W"], /
    ) -> Float[Tensor, "B K"]:
        """Logits of uint8 images on any device with noise added, as float32 on the CPU.

        Noise is in units of pixel values in [0, 1], on the images' device; it is added before normalisation and
        nothing is clipped: the certificate of randomised smoothing holds for this noise only.
        """
        ...


def matched_labels(classes: tuple[str, ...], source: Source) -> Int64[Tensor, " N"]:
    """The class of each image of `source` as a position in `classes`.

    Classes are matched by name. Where all the source's names are whole numbers and not all of `classes` are, a number
    is the position in `classes` (ImageNet-V2, whose folders are 0 to 999 in the order of the sorted WordNet ids).
    Labels of a source that names no classes are positions already. Raises ValueError when the source has no labels, or
    a class that `classes` lacks.
    """
    if source.labels is None:
        raise ValueError(f"the images of {source.name} have no labels; put each class in a folder of its own")
    labels_N = torch.from_numpy(source.labels)
    names = source.classes
    if names is None:
        names = tuple(str(label) for label in range(int(source.labels.max(initial=-1)) + 1))
    by_number = source.classes is None or (_numbers(names) and not _numbers(classes))
    place = {str(position) if by_number else name: position for position, name in enumerate(classes)}
    places_J = torch.tensor([place.get(str(int(name)) if by_number else name, -1) for name in names])
    matched_N = places_J[labels_N]
    unknown = labels_N[matched_N < 0].unique().tolist()
    if unknown:
        shown = ", ".join(names[label] for label in unknown[:5])
        more = " ..." if len(unknown) > 5 else ""
        raise ValueError(f"the classifier does not know these classes of {source.name}: {shown}{more}")
    return matched_N


def _numbers(names: tuple[str, ...]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)


@dataclass(frozen=True)
class Judgement:
    """The score of a classifier on a test set, and the names of the images that could not be read."""

    score: Score
    bad_files: tuple[str, ...]


@torch.no_grad()
def judge(
    classifier: Classifier,
    source: Source,
    labels_N: Int64[Tensor, " N"],
    counting_J: Int64[Tensor, " J"],
    *,
    batch_size: int,
    workers: int,
    crop_ratio: float | None = None,
    retouch: Retouch | None = None,
) -> Judgement:
    """The Score of the readable images of `source`, of class `labels_N`, where the classes `counting_J` (sorted) count.

    Logits of other classes are left out. `crop_ratio`: the share of an image that is shown, None for the classifier's
    own. `retouch` changes every image in the worker, after resizing and cutting. Raises ValueError when no image can be
    read or a logit is not finite.
    """
    height, width = classifier.image_size
    batches = EvalLoader(
        in_range(source, classifier.pixel_range),
        height=height,
        width=width,
        channels=classifier.channels,
        batch_size=batch_size,
        workers=workers,
        crop_ratio=classifier.crop_ratio if crop_ratio is None else crop_ratio,
        retouch=retouch,
    )
    ranked, indices = [], []
    for images_BCHW, indices_B in batches:
        logits_BK = classifier(images_BCHW)
        check_logits(logits_BK)
        ranked.append(rank_classes(logits_BK[:, counting_J]))
        indices.append(indices_B)
    labels_M = torch.searchsorted(counting_J, labels_N[torch.cat(indices)])
    score = score_ranking(torch.cat(ranked), labels_M, class_count=len(counting_J))
    return Judgement(score, tuple(batches.bad_files))


def check_logits(logits_BK: Float[Tensor, "B K"]) -> None:
    """Raise ValueError when a logit is NaN or infinite: no class is the best of such."""
    if not torch.isfinite(logits_BK).all():
        raise ValueError(
            "the classifier gives NaN or infinite logits; it has diverged in training or overflows in its precision"
        )


def evenly(count: int, at_most: int | None) -> Int64[Tensor, " M"]:
    """Positions of `at_most` of `count` things, spread evenly from the first on; all of them with None."""
    chosen = count if at_most is None else min(count, at_most)
    return torch.arange(chosen) * count // max(chosen, 1)
