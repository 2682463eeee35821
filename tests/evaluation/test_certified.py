"""Certificates against classifiers whose robustness is known, and the promise of every bound, counted out exactly."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest, norm
from torch import Tensor

from unmask.data.sources import ArraySource
from unmask.evaluation.certified import (
    CertifiedConfig,
    CertifiedImage,
    CertifiedScore,
    certify,
    certify_image,
    count_classes,
    lower_bound,
    predict,
)
from unmask.evaluation.classifier import Classifier

SIDE = 2
PIXELS = 3 * SIDE * SIDE


class HalfSpace:
    """Class "in" where w . x > b, w of length 1: the smoothed classifier is the same, and as robust as x is far."""

    classes = ("out", "in")
    image_size = (SIDE, SIDE)
    channels = 3
    crop_ratio: float | None = None
    pixel_range: None = None

    def __init__(self, offset: float = 0.5) -> None:
        weights = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        self.weights = weights / weights.norm()
        # A grey image lies on the plane.
        self.threshold = float(offset * self.weights.sum())
        self.largest_batch = 0

    def distance(self, image_CHW: Tensor) -> float:
        """From the plane; above 0 in class "in"."""
        return float((image_CHW / 255 * self.weights).sum()) - self.threshold

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        return self.noisy_logits(images_BCHW, torch.zeros(images_BCHW.shape))

    def noisy_logits(self, images_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        self.largest_batch = max(self.largest_batch, len(noise_BCHW))
        side_B = ((images_BCHW / 255 + noise_BCHW) * self.weights).sum(dim=(1, 2, 3)) - self.threshold
        return torch.stack([torch.zeros_like(side_B), side_B], dim=1)


def _images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def _tensor(image_HWC: np.ndarray) -> Tensor:
    return torch.from_numpy(image_HWC).permute(2, 0, 1).contiguous()


def _source(count: int, classifier: HalfSpace) -> ArraySource:
    """Images with their true classes, but for every fourth."""
    images = _images(count)
    labels = [int(classifier.distance(_tensor(image)) > 0) for image in images]
    labels = [label if number % 4 else 1 - label for number, label in enumerate(labels)]
    return ArraySource("points", images, labels=labels, classes=("out", "in"))


QUICK = CertifiedConfig(n0=10, n=200, alpha=0.001, radii=(0.0, 0.1, 0.3))


def test_the_double_is_a_classifier() -> None:
    assert isinstance(HalfSpace(), Classifier)


# ---------------------------------------------------------------------------------------------- a known classifier


@pytest.mark.parametrize("sigma", [0.25, 0.5])
def test_the_radius_of_a_half_space_is_the_distance_to_its_plane(sigma: float) -> None:
    """Never more (but with probability alpha), and less only by what the bound costs with n copies."""
    classifier, config = HalfSpace(), CertifiedConfig(sigma=sigma, n0=50, n=20_000)
    for index, pixels in enumerate(_images(6, seed=1)):
        image = _tensor(pixels)
        distance = classifier.distance(image)
        found = certify_image(classifier, image, config, index=index, label=1)
        assert found.guess == int(distance > 0)
        assert found.certified
        assert found.predicted == found.guess
        assert found.radius <= abs(distance)
        # Four deviations of the counts below their mean.
        share = norm.cdf(abs(distance) / sigma)
        fewest = config.n * share - 4 * np.sqrt(config.n * share * (1 - share)) - 1
        least = sigma * norm.ppf(beta.ppf(config.alpha, fewest, config.n - fewest + 1))
        assert found.radius >= least


def test_more_copies_certify_more() -> None:
    classifier = HalfSpace()
    image = _tensor(_images(1, seed=1)[0])
    radii = [certify_image(classifier, image, replace(QUICK, n=n), index=0, label=1).radius for n in (100, 1000, 10000)]
    assert radii[0] < radii[1] < radii[2] < abs(classifier.distance(image))


def test_inside_its_radius_no_step_leads_to_another_class() -> None:
    """The worst step is the one straight to the plane."""
    classifier = HalfSpace()
    image = _tensor(_images(1, seed=2)[0])
    found = certify_image(classifier, image, QUICK, index=0, label=1)
    direction = classifier.weights * (-1 if found.guess == 1 else 1)
    moved = image / 255 + found.radius * direction
    assert int((moved * classifier.weights).sum() > classifier.threshold) == found.guess
    assert found.radius > 0


def test_between_two_classes_it_abstains() -> None:
    grey = torch.full((3, SIDE, SIDE), 128, dtype=torch.uint8)
    on_the_plane = HalfSpace(offset=128 / 255)
    for index in range(5):
        found = certify_image(on_the_plane, grey, QUICK, index=index, label=1)
        assert not found.certified
        assert found.radius == 0
        assert found.predicted is None
        assert not found.right


def test_counts_are_those_of_the_normal_distribution() -> None:
    classifier, image = HalfSpace(), _tensor(_images(1, seed=3)[0])
    config = replace(QUICK, sigma=0.5)
    counts = count_classes(classifier, image, 4000, config, torch.Generator().manual_seed(1))
    share = norm.cdf(classifier.distance(image) / 0.5)
    assert counts.sum() == 4000
    assert binomtest(int(counts[1]), 4000, share).pvalue > 1e-4


# ---------------------------------------------------------------------------------------------- reproducibility


def test_batches_change_nothing_but_memory() -> None:
    image = _tensor(_images(1, seed=4)[0])
    found = []
    for size in (1, 7, 64, 10_000):
        classifier = HalfSpace()
        found.append(certify_image(classifier, image, replace(QUICK, batch_size=size), index=3, label=0))
        assert classifier.largest_batch == min(size, QUICK.n)
    assert found[1:] == found[:-1]


def test_noise_is_a_function_of_seed_and_position() -> None:
    classifier, image = HalfSpace(), _tensor(_images(1, seed=4)[0])

    def hits(index: int, seed: int) -> int:
        return certify_image(classifier, image, replace(QUICK, sigma=1.0, n=2000, seed=seed), index=index, label=0).hits

    torch.manual_seed(5)
    first = hits(0, 0)
    state = torch.get_rng_state()
    assert hits(0, 0) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert len({first, hits(1, 0), hits(0, 1), hits(1, 1)}) >= 3


# ---------------------------------------------------------------------------------------------- bounds


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from([0.001, 0.01, 0.05]))
def test_the_bound_is_clopper_pearsons(n: int, share: float, alpha: float) -> None:
    hits = round(n * share)
    interval = binomtest(hits, n, alternative="greater").proportion_ci(1 - alpha, method="exact")
    assert lower_bound(hits, n, alpha) == pytest.approx(interval.low, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.floats(0.001, 0.999), st.sampled_from([0.001, 0.01, 0.05]))
def test_the_bound_is_wrong_no_oftener_than_it_promises(n: int, share: float, alpha: float) -> None:
    counts = np.arange(n + 1)
    wrong = [lower_bound(int(hits), n, alpha) > share for hits in counts]
    assert binom.pmf(counts, n, share)[wrong].sum() <= alpha * (1 + 1e-9)


def test_the_bound_is_wrong_about_as_often_as_it_promises_in_a_simulation() -> None:
    hits = np.random.default_rng(0).binomial(500, 0.9, size=4000)
    wrong = sum(lower_bound(int(count), 500, 0.05) > 0.9 for count in hits)
    assert 0.025 < wrong / 4000 < 0.055


def test_the_ends_of_the_bound() -> None:
    assert lower_bound(0, 100, 0.001) == 0
    assert lower_bound(100, 100, 0.001) == pytest.approx(0.001 ** (1 / 100))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(0.5, 0.999), st.sampled_from([0.001, 0.05]))
def test_predict_gives_a_wrong_class_no_oftener_than_it_promises(n: int, share: float, alpha: float) -> None:
    """Of two classes, the first having the larger share."""
    counts = np.arange(n + 1)
    wrong = [predict(torch.tensor([hits, n - hits]), alpha) == 1 for hits in counts.tolist()]
    assert binom.pmf(counts, n, share)[wrong].sum() <= alpha


def test_predict_compares_the_two_most_frequent_classes() -> None:
    assert predict(torch.tensor([3, 60, 0, 20]), 0.001) == 1
    assert predict(torch.tensor([300, 60, 0, 40]), 0.001) == 0
    assert predict(torch.tensor([50, 50, 0]), 0.05) is None
    assert predict(torch.tensor([0, 10, 0]), 0.001) is None or 2 * 0.5**10 <= 0.001
    assert predict(torch.tensor([0, 11, 0]), 0.001) == 1


# ---------------------------------------------------------------------------------------------- a test set


def test_the_score_counts_images_at_each_radius() -> None:
    classifier = HalfSpace()
    source = _source(20, classifier)
    found = certify(classifier, source, QUICK, workers=0)
    assert [image.index for image in found.images] == list(range(20))
    for image in found.images:
        expected = certify_image(
            classifier, _tensor(source.read(image.index)), QUICK, index=image.index, label=image.label
        )
        assert image == expected
        assert source.labels is not None
        assert image.label == source.labels[image.index]
    for radius, accuracy, interval in zip(found.radii, found.accuracy, found.intervals, strict=True):
        right = sum(i.certified and i.guess == i.label and i.radius >= radius for i in found.images)
        assert accuracy == pytest.approx(100 * right / 20)
        reference = binomtest(right, 20).proportion_ci(method="wilson")
        assert interval == pytest.approx((100 * reference.low, 100 * reference.high))
    assert found.accuracy[0] > found.accuracy[1] > found.accuracy[2]
    assert found.abstained == pytest.approx(100 * np.mean([not image.certified for image in found.images]))
    assert found.mean_radius == pytest.approx(
        np.mean([image.radius * (image.certified and image.guess == image.label) for image in found.images])
    )
    assert found.predicted == pytest.approx(100 * np.mean([image.predicted == image.label for image in found.images]))
    assert found.accuracy[0] <= found.predicted < 80


def test_scores_and_images_go_through_json() -> None:
    classifier = HalfSpace()
    found = certify(classifier, _source(6, classifier), QUICK, workers=0)
    images = [CertifiedImage(**json.loads(json.dumps(image.as_dict()))) for image in found.images]
    assert tuple(images) == found.images
    assert CertifiedScore.of(images, QUICK) == found
    said = json.loads(json.dumps(found.as_dict()))
    assert said["n"] == 6
    assert said["radii"] == [0.0, 0.1, 0.3]
    assert said["accuracy"] == list(found.accuracy)
    assert len(said["intervals"][0]) == 2


def test_abstentions_and_wrong_classes_have_no_radius() -> None:
    usual = {"index": 0, "label": 1, "hits": 190}
    images = [
        CertifiedImage(**usual, guess=1, certified=True, radius=0.4, predicted=1),
        CertifiedImage(**usual, guess=0, certified=True, radius=0.5, predicted=0),
        CertifiedImage(**usual, guess=1, certified=False, radius=0.0, predicted=1),
        CertifiedImage(**usual, guess=1, certified=True, radius=0.0, predicted=None),
    ]
    score = CertifiedScore.of(images, replace(QUICK, radii=(0.0, 0.4, 0.41)))
    assert score.accuracy == (50.0, 25.0, 0.0)
    assert score.abstained == 25
    assert score.mean_radius == pytest.approx(0.1)
    assert score.predicted == 50


@pytest.mark.parametrize(
    ("every", "images", "chosen"),
    [(1, None, [0, 1, 2, 3, 4, 5, 6]), (3, None, [0, 3, 6]), (1, 3, [0, 2, 4]), (2, 3, [0, 2, 4]), (3, 1, [0])],
)
def test_images_are_chosen_evenly(every: int, images: int | None, chosen: list[int]) -> None:
    classifier = HalfSpace()
    config = replace(QUICK, every=every, images=images, n=10)
    found = certify(classifier, _source(7, classifier), config, workers=0)
    assert [image.index for image in found.images] == chosen


def test_images_that_are_done_are_taken_over() -> None:
    classifier = HalfSpace()
    source = _source(8, classifier)
    whole = certify(classifier, source, QUICK, workers=0)
    told: list[CertifiedImage] = []
    resumed = certify(classifier, source, QUICK, workers=0, done=whole.images[1:5], on_image=told.append)
    assert resumed == whole
    assert [image.index for image in told] == [0, 5, 6, 7]
    classifier.largest_batch = 0
    assert certify(classifier, source, QUICK, workers=0, done=whole.images) == whole
    assert classifier.largest_batch == 0


def test_workers_change_nothing() -> None:
    classifier = HalfSpace()
    source = _source(5, classifier)
    assert certify(classifier, source, QUICK, workers=2) == certify(classifier, source, QUICK, workers=0)


def test_unreadable_images_are_left_out_and_named() -> None:
    class Partly(ArraySource):
        def read(self, index: int) -> np.ndarray:
            if index == 1:
                raise OSError("cannot be read")
            return super().read(index)

    source = Partly("points", _images(4), labels=[0, 1, 0, 1], classes=("out", "in"))
    found = certify(HalfSpace(), source, QUICK, workers=0)
    assert [image.index for image in found.images] == [0, 2, 3]
    assert found.bad_files == ("points/1",)


def test_what_does_not_fit_is_refused() -> None:
    unknown = ArraySource("points", _images(2), labels=[0, 1], classes=("in", "beside"))
    with pytest.raises(ValueError, match=r"^the classifier does not know these classes of points: beside$"):
        certify(HalfSpace(), unknown, QUICK, workers=0)
    broken = HalfSpace()
    broken.threshold = float("nan")
    with pytest.raises(ValueError, match=r"^the classifier gives NaN or infinite logits; .*$"):
        certify(broken, ArraySource("points", _images(2), labels=[0, 1]), QUICK, workers=0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sigma": 0.0}, r"^the noise needs a deviation above 0, got sigma = 0.0$"),
        ({"n": 0}, r"^n0, n, every, images and the batch size of a certification must all be at least 1$"),
        ({"images": 0}, r"^n0, n, every, images and the batch size of a certification must all be at least 1$"),
        ({"alpha": 0.5}, r"^the probability of a wrong certificate must be above 0 and below 0.5, got 0.5$"),
        ({"radii": ()}, r"^the radii to certify must be 0 or more, and at least one, got \(\)$"),
        ({"radii": (0.5, -1.0)}, r"^the radii to certify must be 0 or more, and at least one, got \(0.5, -1.0\)$"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CertifiedConfig(**changes)  # type: ignore[arg-type]
