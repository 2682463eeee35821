"""Certified robustness by randomised smoothing (Cohen, Rosenfeld and Kolter 2019, arXiv 1902.02918): DMAE's metric.

The smoothed classifier g gives the class that a classifier f most often gives for x + sigma n, n standard normal. No
change of x of a Euclidean length below sigma * Phi^-1(p) changes g(x), where p is the probability of that class under
the noise (theorem 1, with 1 - p for all other classes together). p is bounded from below by sampling.

Lengths are those of images with pixel values in [0, 1], over all pixels and channels.

Shape legend: B noisy copies, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean
from typing import Annotated, Any

import torch
from jaxtyping import Int64, UInt8
from scipy.stats import beta, binomtest
from torch import Tensor
from typing_extensions import Doc

from unmask.data.loader import EvalLoader, step_seed
from unmask.data.pixel_range import in_range
from unmask.data.sources import Source
from unmask.evaluation.classifier import Classifier, check_logits, evenly, matched_labels
from unmask.evaluation.metrics import wilson_interval


@dataclass(frozen=True, kw_only=True)
class CertifiedConfig:
    """How many noisy copies of which images are looked at, and how sure the certificates are."""

    sigma: Annotated[
        float,
        Doc("Deviation of the noise, in units of pixel values in [0, 1]; train with the same. [DMAE: 0.25, 0.5, 1]"),
    ] = 0.25
    n0: Annotated[int, Doc("Noisy copies by which the class is chosen. [Cohen et al.: 100]")] = 100
    n: Annotated[
        int,
        Doc(
            "Noisy copies by which its probability is bounded; radii end at sigma * Phi^-1(alpha^(1/n)). "
            "[DMAE: 10,000 on ImageNet, 100,000 on CIFAR-10; Cohen et al.: 100,000]"
        ),
    ] = 10_000
    alpha: Annotated[float, Doc("Probability that a certificate is wrong. [Cohen et al.: 0.001]")] = 0.001
    radii: Annotated[tuple[float, ...], Doc("Radii at which accuracy is given. [DMAE: 0 to 3, see its certify.py]")] = (
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
        1.25,
        1.5,
        2.0,
        3.0,
    )
    every: Annotated[
        int, Doc("Only every so many-th test image is certified. [DMAE: 50 on ImageNet, 1 on CIFAR-10]")
    ] = 1
    images: Annotated[
        int | None,
        Doc("At most so many images, spread evenly over those; None for all. [500 in Cohen et al., by `every`]"),
    ] = 500
    batch_size: Annotated[int, Doc("Noisy copies that the classifier sees at once; it changes no result.")] = 100
    seed: Annotated[int, Doc("Seed of the noise, together with the position of the image.")] = 0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"the noise needs a deviation above 0, got sigma = {self.sigma}")
        if min(self.n0, self.n, self.every, self.batch_size, 1 if self.images is None else self.images) < 1:
            raise ValueError("n0, n, every, images and the batch size of a certification must all be at least 1")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"the probability of a wrong certificate must be above 0 and below 0.5, got {self.alpha}")
        if not self.radii or min(self.radii) < 0:
            raise ValueError(f"the radii to certify must be 0 or more, and at least one, got {self.radii}")


@dataclass(frozen=True, kw_only=True)
class CertifiedImage:
    """What was certified of one image. Classes are positions in the classifier's.

    `index` is its position in the source. `guess`: the class chosen by the first n0 copies; `hits`: how many of the n
    copies were of that class; `radius`: within which g surely keeps it, 0 where `certified` is False (abstention).
    `predicted`: the class of g by the paper's PREDICT on the same n copies, None where that abstains.
    """

    index: int
    label: int
    guess: int
    hits: int
    certified: bool
    radius: float
    predicted: int | None

    @property
    def right(self) -> bool:
        """Whether it is certified to be of its own class."""
        return self.certified and self.guess == self.label

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `CertifiedImage(**values)` takes them back."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CertifiedScore:
    """Robustness of a smoothed classifier on the images certified; shares in percent.

    `accuracy` holds for each of `radii` the share of images that are certified to keep their own class within it, and
    `intervals` its 95 % Wilson interval (for drawing other images). `abstained`: the share without a certificate.
    `mean_radius` is the average certified radius, that of a wrong or abstained image being 0. `predicted`: accuracy of
    the smoothed classifier by PREDICT, where an abstention is wrong.
    """

    sigma: float
    radii: tuple[float, ...]
    accuracy: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    abstained: float
    mean_radius: float
    predicted: float
    images: tuple[CertifiedImage, ...]
    bad_files: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, images: Sequence[CertifiedImage], config: CertifiedConfig, *, bad_files: Sequence[str] = ()
    ) -> CertifiedScore:
        """The score of these images (at least one)."""
        hits = [sum(image.right and image.radius >= radius for image in images) for radius in config.radii]
        return cls(
            sigma=config.sigma,
            radii=config.radii,
            accuracy=tuple(100 * count / len(images) for count in hits),
            intervals=tuple(wilson_interval(count, len(images)) for count in hits),
            abstained=100 * fmean(not image.certified for image in images),
            mean_radius=fmean(image.radius if image.right else 0.0 for image in images),
            predicted=100 * fmean(image.predicted == image.label for image in images),
            images=tuple(images),
            bad_files=tuple(bad_files),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the images one by one."""
        return {
            "sigma": self.sigma,
            "n": len(self.images),
            "radii": list(self.radii),
            "accuracy": list(self.accuracy),
            "intervals": [list(interval) for interval in self.intervals],
            "abstained": self.abstained,
            "mean_radius": self.mean_radius,
            "predicted": self.predicted,
            "bad_files": list(self.bad_files),
        }


def certify(
    classifier: Classifier,
    source: Source,
    config: CertifiedConfig,
    *,
    workers: int,
    device: torch.device | str = "cpu",
    done: Sequence[CertifiedImage] = (),
    on_image: Callable[[CertifiedImage], None] | None = None,
) -> CertifiedScore:
    """Certify labelled images of `source` one by one by the paper's CERTIFY; each costs n0 + n looks at it.

    Noise is drawn on `device`, the classifier's own: drawing takes as long as a small network does. It is a function of
    the seed and the position of the image, whatever the size of the batch (another kind of device draws another).
    Images in `done` are taken over, `on_image` is called after each other one. Raises ValueError for a source that does
    not fit the classifier, and where no image can be read.
    """
    labels_N = matched_labels(classifier.classes, source)
    places_M = torch.arange(0, len(source), config.every)
    chosen = places_M[evenly(len(places_M), config.images)].tolist()
    known = {image.index: image for image in done}
    todo = [index for index in chosen if index not in known]
    height, width = classifier.image_size
    batches = EvalLoader(
        in_range(source, classifier.pixel_range).subset(todo),
        height=height,
        width=width,
        channels=classifier.channels,
        batch_size=1,
        workers=workers,
        crop_ratio=classifier.crop_ratio,
    )
    if todo:
        for image_1CHW, position_1 in batches:
            index = todo[int(position_1)]
            image = certify_image(classifier, image_1CHW[0].to(device), config, index=index, label=int(labels_N[index]))
            known[index] = image
            if on_image is not None:
                on_image(image)
    images = [known[index] for index in chosen if index in known]
    return CertifiedScore.of(images, config, bad_files=tuple(batches.bad_files))


def certify_image(
    classifier: Classifier, image_CHW: UInt8[Tensor, "C H W"], config: CertifiedConfig, *, index: int, label: int
) -> CertifiedImage:
    """CERTIFY and PREDICT for one image (algorithms in section 3.2), with noise drawn where the image is.

    The class is chosen by n0 copies and its probability bounded by n others. Where the bound is below one half, no
    certificate is given. PREDICT takes the same n copies: it is a statement of its own, with its own alpha.
    DMAE's code (util/smooth.py) spares the n copies where the class chosen is wrong and calls that abstention: the same
    certified accuracy, but the share of abstentions is another.
    """
    generator = torch.Generator(image_CHW.device).manual_seed(step_seed(config.seed, index, 0))
    guess = int(count_classes(classifier, image_CHW, config.n0, config, generator).argmax())
    counts_K = count_classes(classifier, image_CHW, config.n, config, generator)
    hits = int(counts_K[guess])
    bound = lower_bound(hits, config.n, config.alpha)
    certified = bound >= 0.5
    return CertifiedImage(
        index=index,
        label=label,
        guess=guess,
        hits=hits,
        certified=certified,
        radius=config.sigma * NormalDist().inv_cdf(bound) if certified else 0.0,
        predicted=predict(counts_K, config.alpha),
    )


@torch.no_grad()
def count_classes(
    classifier: Classifier,
    image_CHW: UInt8[Tensor, "C H W"],
    count: int,
    config: CertifiedConfig,
    generator: torch.Generator,
) -> Int64[Tensor, " K"]:
    """How often each class is the best of `count` noisy copies of an image. Raises ValueError for NaN logits."""
    counts_K = torch.zeros(len(classifier.classes), dtype=torch.int64)
    for start in range(0, count, config.batch_size):
        size = min(config.batch_size, count - start)
        noise_BCHW = torch.empty(size, *image_CHW.shape, device=image_CHW.device)
        # Copy by copy: what torch draws for a whole batch depends on its size.
        for noise_CHW in noise_BCHW:
            noise_CHW.normal_(0, config.sigma, generator=generator)
        logits_BK = classifier.noisy_logits(image_CHW.expand_as(noise_BCHW), noise_BCHW)
        check_logits(logits_BK)
        counts_K += torch.bincount(logits_BK.argmax(dim=1), minlength=len(counts_K))
    return counts_K


def lower_bound(hits: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's one-sided bound of the share (0 to 1) of which `hits` of `n` were drawn.

    It is too high with probability `alpha` at most.
    """
    return float(beta.ppf(alpha, hits, n - hits + 1)) if hits > 0 else 0.0


def predict(counts_K: Int64[Tensor, " K"], alpha: float) -> int | None:
    """PREDICT: the most frequent class, None where a fair coin could have put it before the second.

    By a two-sided binomial test of the two counts against one half at level `alpha` (Hung and Fithian 2019): a class
    that g does not give is returned with probability alpha at most.
    """
    order = counts_K.sort(descending=True, stable=True)
    first, second = order.values[:2].tolist()
    if binomtest(first, first + second, 0.5).pvalue > alpha:
        return None
    return int(order.indices[0])
