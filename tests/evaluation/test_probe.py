"""The probe of an encoder is the quick linear probe, and a classifier like any other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny_classifiers import TINY, tiny_pretrained
from unmask.data.sources import ArraySource
from unmask.evaluation.classifier import Classifier, judge, matched_labels
from unmask.evaluation.linear import LinearConfig, fit_linear, quick_linear
from unmask.evaluation.probe import ProbeClassifier, fit_probe
from unmask.evaluation.protocols import encoder_features

QUICK = LinearConfig(epochs=10, batch_size=16, lrs=(1e-3, 1e-1))
CLASSES = ("blue", "grey", "red")


def images_of(count: int, seed: int) -> ArraySource:
    """Noise, more or less red and blue by class; hard enough that not all is right."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = generator.integers(0, 200, (count, 32, 32, 3))
    images[..., 0] += 3 * (labels[:, None, None] == 2) * generator.integers(0, 12, (count, 1, 1))
    images[..., 2] += 3 * (labels[:, None, None] == 0) * generator.integers(0, 12, (count, 1, 1))
    return ArraySource("noise", images.astype(np.uint8), labels=labels, classes=CLASSES)


@pytest.fixture(scope="module")
def probe() -> ProbeClassifier:
    return fit_probe(tiny_pretrained(), images_of(90, 0), QUICK, 3, workers=0)


def pictures(count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_it_is_a_classifier(probe: ProbeClassifier) -> None:
    assert isinstance(probe, Classifier)
    assert (probe.classes, probe.image_size, probe.channels, probe.crop_ratio) == (CLASSES, (32, 32), 3, None)


def test_it_scores_what_the_quick_linear_probe_scores(probe: ProbeClassifier) -> None:
    train, test = images_of(90, 0), images_of(60, 1)
    encoder = tiny_pretrained()
    expected = quick_linear(*(encoder_features(encoder, half, workers=0) for half in (train, test)), QUICK, 3)
    found = judge(probe, test, matched_labels(CLASSES, test), torch.arange(3), batch_size=7, workers=0)
    assert found.score == expected.score
    assert 40 < found.score.top1 < 100
    assert probe.lr == expected.lr


def test_logits_are_those_of_batch_norm_and_a_linear_layer(probe: ProbeClassifier) -> None:
    x_ND = encoder_features(tiny_pretrained(), images_of(90, 0), workers=0).x_ND
    found = tiny_pretrained().features(pictures())
    normed = (found - x_ND.mean(dim=0)) / (x_ND.var(dim=0, correction=0) + 1e-6).sqrt()
    expected = normed @ probe.heads.weight_GKD[0].T + probe.heads.bias_GK[0]
    torch.testing.assert_close(probe(pictures()), expected, rtol=1e-4, atol=1e-4)


def test_noise_is_added_to_pixel_values_before_normalisation(probe: ProbeClassifier) -> None:
    images = pictures().clamp(max=250)
    assert torch.equal(probe.noisy_logits(images, torch.zeros(images.shape)), probe(images))
    brighter = probe.noisy_logits(images, torch.full(images.shape, 5 / 255))
    torch.testing.assert_close(brighter, probe(images + 5), rtol=1e-4, atol=1e-4)
    beyond = probe.noisy_logits(images, torch.full(images.shape, 2.0))
    assert not torch.allclose(beyond, probe(torch.full_like(images, 255)), atol=1e-2), "nothing is clipped"


def test_the_class_token_may_be_read_instead() -> None:
    by_token = fit_probe(tiny_pretrained(), images_of(30, 0), QUICK, 0, pooling="class", workers=0)
    by_mean = fit_probe(tiny_pretrained(), images_of(30, 0), QUICK, 0, workers=0)
    assert not torch.equal(by_token(pictures()), by_mean(pictures()))


def test_a_class_without_a_readable_image_keeps_its_place() -> None:
    class Partly(ArraySource):
        def read(self, index: int) -> np.ndarray:
            if index % 3 == 1:
                raise OSError(5, "broken")
            return super().read(index)

    whole = images_of(30, 0)
    source = Partly("partly", whole._images, labels=whole.labels, classes=CLASSES)
    probe = fit_probe(tiny_pretrained(), source, QUICK, 0, workers=0)
    assert probe.classes == CLASSES
    readable = torch.from_numpy(whole._images[np.arange(30) % 3 != 1]).permute(0, 3, 1, 2)
    assert probe(readable).shape == (20, 3)
    assert 1 not in probe(readable).argmax(dim=1)


def test_the_fitted_classifier_is_the_one_that_is_scored() -> None:
    encoder = tiny_pretrained()
    train, test = (encoder_features(encoder, images_of(60, seed), workers=0) for seed in (0, 1))
    assert train.labels_N is not None
    assert test.labels_N is not None
    fit = fit_linear(train.x_ND, train.labels_N, 3, QUICK, 5)
    result = quick_linear(train, test, QUICK, 5)
    assert (fit.lr, fit.sweep, fit.heads.curve(0)) == (result.lr, result.sweep, result.curve)
    assert fit.heads.weight_GKD.shape[:2] == (1, 3)
    right = fit.heads(test.x_ND)[:, 0].argmax(dim=1) == test.labels_N
    assert 100 * float(right.double().mean()) == pytest.approx(result.score.top1)


def test_what_cannot_be_fitted_is_refused() -> None:
    images = images_of(4, 0)._images
    with pytest.raises(ValueError, match=r"^the images of x have no labels; put each class in a folder of its own$"):
        fit_probe(tiny_pretrained(), ArraySource("x", images), QUICK, 0, workers=0)
    one = ArraySource("x", images[:1], labels=[0], classes=CLASSES)
    with pytest.raises(ValueError, match=r"^a linear probe needs at least two train images"):
        fit_probe(tiny_pretrained(), one, QUICK, 0, workers=0)
    broken = tiny_pretrained(replace(TINY, depth=1))
    with torch.no_grad():
        broken.encoder.vit.blocks[0].mlp.fc1.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"^6 of 6 images have features with NaN or infinite values"):
        fit_probe(broken, images_of(6, 0), QUICK, 0, workers=0)
