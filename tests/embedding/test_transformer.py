"""Features as a scikit-learn transformer: its conventions, what it takes, and a classifier on top that learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
)

import unmask
from tiny_supervised import write_encoder
from unmask.data.sources import labelled
from unmask.embedding.transformer import UnmaskFeatures
from unmask.models.pretrained import open_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.safetensors"))


def test_conventions_of_scikit_learn(encoder: str) -> None:
    assert unmask.UnmaskFeatures is UnmaskFeatures
    made = UnmaskFeatures(encoder, output="class", device="cpu")
    for check in (
        check_parameters_default_constructible,
        check_no_attributes_set_in_init,
        check_get_params_invariance,
        check_set_params,
    ):
        check("UnmaskFeatures", made)
    assert clone(made).get_params() == made.get_params()
    assert made.set_params(batch_size=7).batch_size == 7
    assert not made.__sklearn_tags__().input_tags.two_d_array
    with pytest.raises(NotFittedError):
        made.transform([np.zeros((8, 8, 3), np.uint8)])
    names = made.fit([]).get_feature_names_out()
    assert len(names) == made.transform([np.zeros((8, 8, 3), np.uint8)]).shape[1]
    assert names[1] == "unmaskfeatures1"


def test_a_pipeline_learns_from_built_in_images(encoder: str) -> None:
    train, test = (
        half.subset(np.arange(limit)) for half, limit in zip(labelled("builtin:fashion-mnist"), (200, 100), strict=True)
    )
    images = [[half.read(k) for k in range(len(half))] for half in (train, test)]
    model = make_pipeline(UnmaskFeatures(encoder, device="cpu"), StandardScaler(), LogisticRegression(max_iter=200))
    model.fit(images[0], train.labels)
    assert model.score(images[1], test.labels) > 0.5  # chance is 0.1
    assert "logisticregression" in model.named_steps


def test_paths_pillow_images_and_arrays_are_the_same(encoder: str, photo_folder: Path) -> None:
    paths = sorted(photo_folder.rglob("*.png"))
    features = UnmaskFeatures(encoder, device="cpu").fit_transform([*paths])
    assert features.dtype == np.float32
    model = UnmaskFeatures(encoder, device="cpu").fit(paths)
    for given in (
        [str(path) for path in paths],
        np.array([str(path) for path in paths]),
        [Image.open(path) for path in paths],
        [np.asarray(Image.open(path)) for path in paths],
    ):
        assert np.array_equal(model.transform(given), features)
    trained = open_encoder(encoder).to(torch.device("cpu"))
    height, width = trained.encoder.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    expected = trained.features(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    assert np.array_equal(model.transform(pixels), expected.numpy())


def test_transparent_and_turned_images_are_those_of_their_files(encoder: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    turned = Image.fromarray(pixels[:, :, :3])
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    paths = [tmp_path / "clear.png", tmp_path / "turned.png"]
    model = UnmaskFeatures(encoder, device="cpu").fit(paths)
    assert np.array_equal(model.transform(paths), model.transform([Image.open(path) for path in paths]))


def test_what_is_refused(encoder: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = np.zeros((8, 8, 3), np.uint8)
    model = UnmaskFeatures(encoder, device="cpu").fit([])
    for given, said in (
        ([good, broken], r"^1 of 2 images cannot be read, for example .*broken.png$"),
        ([good, 3], r"^image 1 of images is neither a path, nor a Pillow image, nor an array of numbers .* it is int$"),
        ([good.astype(complex)], r"it is complex128 of \(8, 8, 3\)$"),
        ([], r"^there are no images$"),
        ("photo.jpg", r"^give a list of images, not one path: \['photo.jpg'\]$"),
    ):
        with pytest.raises(ValueError, match=said):
            model.transform(given)
    for options, said in (
        ({"batch_size": 0}, "^batch_size must be at least 1"),
        ({"block": -1}, "^block -1 is not there"),
        ({"encoder": "gone"}, "^there is no run folder or encoder file gone$"),
    ):
        with pytest.raises(ValueError, match=said):
            UnmaskFeatures(**{"encoder": encoder, "device": "cpu"} | options).fit([])
