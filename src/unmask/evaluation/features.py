"""Frozen features of a data source: what every evaluation that trains no encoder starts from.

Shape legend: N images, B images of a batch, C channels, H x W pixels, D feature dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Doc

from unmask.data.loader import EvalLoader
from unmask.data.sources import Source
from unmask.models.products import usual_products


@runtime_checkable
class FeatureExtractor(Protocol):
    """One feature an image: its author normalises, runs the frozen encoder in eval mode, and pools."""

    def __call__(self, images_BCHW: UInt8[Tensor, "B C H W"], /) -> Float[Tensor, "B D"]:
        """Features of uint8 images (on the CPU), as float32 on the CPU."""
        ...


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of the readable images of one source, in the source's order."""

    x_ND: Annotated[Tensor, Doc("Features, float32 on the CPU.")]
    labels_N: Annotated[Tensor | None, Doc("Class of every image, int64; None when the source has no labels.")]
    indices_N: Annotated[Tensor, Doc("Position of every image in its source, int64.")]
    classes: Annotated[tuple[str, ...] | None, Doc("Name of the class with each label; None: no names.")] = None
    bad_files: Annotated[tuple[str, ...], Doc("Names of the images that could not be read and are left out.")] = ()


def extract(
    extractor: FeatureExtractor,
    source: Source,
    *,
    height: int,
    width: int,
    channels: int,
    batch_size: int,
    workers: int,
) -> Features:
    """Features of every readable image of `source`, resized and cut to height x width without randomness.

    Raises ValueError when no image can be read.
    """
    batches = EvalLoader(source, height=height, width=width, channels=channels, batch_size=batch_size, workers=workers)
    features, indices = [], []
    # Not inference_mode: its tensors may not enter the training of a probe.
    with torch.no_grad(), usual_products():
        for images_BCHW, indices_B in batches:
            features.append(extractor(images_BCHW))
            indices.append(indices_B)
    indices_N = torch.cat(indices)
    labels = source.labels
    return Features(
        x_ND=torch.cat(features),
        labels_N=None if labels is None else torch.from_numpy(labels)[indices_N],
        indices_N=indices_N,
        classes=source.classes,
        bad_files=tuple(batches.bad_files),
    )


def pixel_extractor(size: int) -> FeatureExtractor:
    """The floor every encoder must beat: the raw pixels of the image resized to size x size, in [0, 1]."""

    def pixels(images_BCHW: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        small = F.interpolate(images_BCHW.float(), size=(size, size), mode="bilinear", antialias=True)
        return small.flatten(1) / 255

    return pixels


def check_finite(x_ND: Float[Tensor, "N D"]) -> None:
    """Raise ValueError when a feature holds NaN or an infinite value."""
    broken = int((~torch.isfinite(x_ND)).any(dim=1).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(x_ND)} images have features with NaN or infinite values; "
            "the encoder has diverged or overflows in its precision"
        )


def comparable_labels(train: Features, test: Features) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " M"], int]:
    """`dense_labels` of both, where a classifier of the train features can be scored on the test ones.

    Raises ValueError for features of different width or with NaN, and for what `dense_labels` refuses.
    """
    labels = dense_labels(train.labels_N, test.labels_N, train.classes, test.classes)
    if train.x_ND.shape[1] != test.x_ND.shape[1]:
        raise ValueError(
            f"train and test features must come from one encoder, got {train.x_ND.shape[1]} and "
            f"{test.x_ND.shape[1]} dimensions"
        )
    check_finite(train.x_ND)
    check_finite(test.x_ND)
    return labels


def dense_labels(
    train_N: Int64[Tensor, " N"] | None,
    test_M: Int64[Tensor, " M"] | None,
    train_classes: tuple[str, ...] | None = None,
    test_classes: tuple[str, ...] | None = None,
) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " M"], int]:
    """Both sets' labels as positions 0 ... K - 1 among the classes that the train images have, and K.

    Two folders number their classes each for itself, so where both sets name them, classes are matched by
    name. Raises ValueError when a set has no labels or no images, the train images have one class, or a test
    image has a class that no train image has.
    """
    train_N = _present(train_N, "train")
    test_M = _present(test_M, "test")
    present_K, dense_N = torch.unique(train_N, return_inverse=True)
    if len(present_K) == 1:
        raise ValueError("the train images all have one class, so there is nothing to tell apart")
    aligned_M = test_M
    if train_classes is not None and test_classes is not None and train_classes != test_classes:
        label_of = {name: label for label, name in enumerate(train_classes)}
        aligned_M = torch.tensor([label_of.get(name, -1) for name in test_classes])[test_M]
    unseen = test_M[~torch.isin(aligned_M, present_K)].unique().tolist()
    if unseen:
        names = [str(label) if test_classes is None else test_classes[label] for label in unseen[:5]]
        more = " ..." if len(unseen) > 5 else ""
        raise ValueError(f"no train image has these classes of the test set: {', '.join(names)}{more}")
    return dense_N, torch.searchsorted(present_K, aligned_M), len(present_K)


def _present(labels_N: Int64[Tensor, " N"] | None, name: str) -> Int64[Tensor, " N"]:
    if labels_N is None:
        raise ValueError(f"the {name} images have no labels; put each class in a folder of its own")
    if len(labels_N) == 0:
        raise ValueError(f"there are no {name} images")
    return labels_N
