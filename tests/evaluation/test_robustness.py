"""Accuracy on shifted and corrupted images against plain loops over them, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unmask.data.corruption import CORRUPTIONS, SEVERITIES, Corruption
from unmask.data.crop import Stream, sample_generator
from unmask.data.sources import ArraySource, open_source
from unmask.evaluation import robustness as module
from unmask.evaluation.classifier import Classifier, evenly, matched_labels
from unmask.evaluation.metrics import score_ranking
from unmask.evaluation.robustness import (
    ALEXNET_ERRORS,
    CorruptionScore,
    RobustnessConfig,
    RobustnessScore,
    corruption_folders,
    mean_corruption_error,
    robustness,
    shifted,
    stored_robustness,
)

# fmt: off
# AlexNet's error by corruption and severity, as in NVIDIA's evaluation of FAN.
ALEXNET_BY_SEVERITY = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
    "frost": (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
    "fog": (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
    "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
    "contrast": (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
# fmt: on


class Colours:
    """Knows colours: its logits say how near the mean colour of an image is to each of them."""

    channels = 3
    crop_ratio: float | None = None
    pixel_range: None = None

    def __init__(self, colours: dict[str, tuple[int, int, int]], size: int = 32) -> None:
        self.classes = tuple(colours)
        self.image_size = (size, size)
        self._colours_KC = torch.tensor(list(colours.values())).float()

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        means_BC = images_BCHW.float().mean(dim=(2, 3))
        return -torch.cdist(means_BC, self._colours_KC)

    def noisy_logits(self, images_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        raise AssertionError("robustness adds no noise of its own")


RED, GREEN, BLUE, GREY = (150, 100, 100), (100, 150, 100), (100, 100, 150), (117, 117, 117)
THREE = {"blue": BLUE, "green": GREEN, "red": RED}


def _picture(colour: tuple[int, int, int], seed: int, size: int = 32) -> np.ndarray:
    """A noisy picture of this mean colour."""
    coarse = np.random.default_rng(seed).normal(colour, 70, (4, 5, 3)).clip(0, 255).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def _folder(path: Path, classes: dict[str, tuple[int, int, int]], count: int = 4, size: int = 32) -> Path:
    for name, colour in classes.items():
        (path / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(_picture(colour, number, size)).save(path / name / f"{number}.png")
    return path


def _source(count: int = 8) -> ArraySource:
    colours = [list(THREE.values())[number % 3] for number in range(count)]
    images = np.stack([_picture(colour, number) for number, colour in enumerate(colours)])
    return ArraySource("three", images, labels=np.arange(count) % 3, classes=tuple(THREE))


def test_the_double_is_a_classifier() -> None:
    assert isinstance(Colours(THREE), Classifier)
    assert not isinstance(lambda images: images, Classifier)


# ---------------------------------------------------------------------------------------------- classes


def test_classes_are_matched_by_name() -> None:
    source = ArraySource("x", np.zeros((3, 4, 4, 3), np.uint8), labels=[0, 1, 0], classes=("b", "d"))
    assert matched_labels(("a", "b", "c", "d"), source).tolist() == [1, 3, 1]


def test_numbered_folders_are_positions_unless_the_classifiers_classes_are_numbers_too() -> None:
    source = ArraySource("v2", np.zeros((3, 4, 4, 3), np.uint8), labels=[0, 1, 2], classes=("0", "10", "2"))
    assert matched_labels(tuple(f"n{place}" for place in range(11)), source).tolist() == [0, 10, 2]
    assert matched_labels(("2", "10", "0"), source).tolist() == [2, 1, 0]


def test_labels_without_names_are_positions() -> None:
    source = ArraySource("x", np.zeros((3, 4, 4, 3), np.uint8), labels=[2, 0, 2])
    assert matched_labels(("a", "b", "c"), source).tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match=r"^the classifier does not know these classes of x: 2$"):
        matched_labels(("a", "b"), source)


def test_unknown_classes_are_named() -> None:
    source = ArraySource("odd", np.zeros((3, 4, 4, 3), np.uint8), labels=[0, 1, 2], classes=("cow", "dog", "red"))
    with pytest.raises(ValueError, match=r"^the classifier does not know these classes of odd: cow, dog$"):
        shifted(Colours(THREE), source, workers=0)
    many = ArraySource("odd", np.zeros((7, 4, 4, 3), np.uint8), labels=np.arange(7), classes=tuple("abcdefg"))
    with pytest.raises(ValueError, match=r"^the classifier does not know these classes of odd: a, b, c, d, e \.\.\.$"):
        shifted(Colours(THREE), many, workers=0)
    far = ArraySource("v2", np.zeros((2, 4, 4, 3), np.uint8), labels=[0, 1], classes=("0", "3"))
    with pytest.raises(ValueError, match=r"^the classifier does not know these classes of v2: 3$"):
        shifted(Colours(THREE), far, workers=0)


def test_a_class_without_an_image_need_not_be_known() -> None:
    source = ArraySource("x", np.zeros((2, 4, 4, 3), np.uint8), labels=[0, 2], classes=("red", "cow", "blue"))
    assert matched_labels(tuple(THREE), source).tolist() == [2, 0]


def test_images_without_labels_or_of_one_class_are_refused() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"^the images of x have no labels; put each class in a folder of its own$"):
        shifted(Colours(THREE), ArraySource("x", images), workers=0)
    one = ArraySource("x", images, labels=[0, 0], classes=("red",))
    with pytest.raises(ValueError, match=r"^the images of x all have one class, so there is nothing to tell apart$"):
        shifted(Colours(THREE), one, workers=0)


# ---------------------------------------------------------------------------------------------- shifted sets


def test_only_the_classes_of_the_folder_count(tmp_path: Path) -> None:
    """Grey is nearest to most of these pictures; it must not be chosen where there is no grey folder."""
    classifier = Colours({"grey": GREY, **THREE})
    source = open_source(_folder(tmp_path / "r", {"blue": BLUE, "red": RED}, count=6))
    right = 0
    for index in range(len(source)):
        image = np.array(Image.open(source.path(index))).astype(float).mean(axis=(0, 1))
        distances = {name: np.linalg.norm(image - THREE[name]) for name in ("blue", "red")}
        assert source.labels is not None
        assert source.classes is not None
        right += min(distances, key=lambda name: distances[name]) == source.classes[source.labels[index]]
    judgement = shifted(classifier, source, workers=0, batch_size=5)
    assert judgement.score.top1 == pytest.approx(100 * right / 12)
    assert judgement.score.n == 12
    assert judgement.score.top5 is None


def test_all_classes_count_for_own_data() -> None:
    classifier, source = Colours({"grey": GREY, **THREE}), _source(9)
    means = np.stack([source.read(index) for index in range(9)]).astype(float).mean(axis=(1, 2))
    nearest = np.linalg.norm(means[:, None] - np.array([GREY, BLUE, GREEN, RED]), axis=2).argmin(axis=1)
    found = robustness(classifier, source, RobustnessConfig(corruptions=("fog",), severities=(1,)), workers=0)
    assert found.clean is not None
    assert found.clean.top1 == pytest.approx(100 * np.mean(nearest == np.arange(9) % 3 + 1))
    assert found.clean.top1 < 100


def test_files_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "r", {"blue": BLUE, "red": RED})
    (folder / "red" / "0.png").write_bytes(b"nothing")
    judgement = shifted(Colours(THREE), open_source(folder), workers=0)
    assert judgement.score.n == 7
    assert [Path(name).name for name in judgement.bad_files] == ["0.png"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_classifier_that_has_diverged_is_refused(value: float) -> None:
    classifier = Colours(THREE)
    classifier._colours_KC[1, 1] = value
    with pytest.raises(ValueError, match=r"^the classifier gives NaN or infinite logits; .*$"):
        shifted(classifier, _source(), workers=0)


# ---------------------------------------------------------------------------------------------- corruptions


def _by_hand(classifier: Colours, source: ArraySource, chosen: list[int], corruption: Corruption) -> float:
    right = 0
    for place, index in enumerate(chosen):
        image = torch.from_numpy(source.read(index)).permute(2, 0, 1).contiguous()
        image = corruption(image, sample_generator(0, 0, place, Stream.RETOUCH))
        assert source.labels is not None
        assert source.classes is not None
        right += classifier.classes[int(classifier(image[None]).argmax())] == source.classes[source.labels[index]]
    return 100 * right / len(chosen)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_cell_is_the_accuracy_on_images_corrupted_by_hand(workers: int) -> None:
    classifier, source = Colours({"grey": GREY, **THREE}), _source(12)
    config = RobustnessConfig(
        corruptions=("gaussian_noise", "contrast", "impulse_noise"), severities=(1, 5), images=8, batch_size=3, seed=4
    )
    found = robustness(classifier, source, config, workers=workers)
    chosen = [0, 1, 3, 4, 6, 7, 9, 10]
    assert [(cell.corruption, cell.severity) for cell in found.cells] == [
        (name, severity) for name in config.corruptions for severity in (1, 5)
    ]
    accuracies = set()
    for cell in found.cells:
        expected = _by_hand(classifier, source, chosen, Corruption(cell.corruption, cell.severity, seed=4))
        accuracies.add(expected)
        assert cell.score.top1 == pytest.approx(expected)
        assert cell.score.n == 8
    assert len(accuracies) > 2
    assert found.mce is None


def test_what_is_drawn_does_not_depend_on_batches() -> None:
    config = {"corruptions": ("shot_noise", "snow"), "severities": (3,)}
    classifier = Colours({"grey": GREY, **THREE})
    one, other = (
        robustness(classifier, _source(), RobustnessConfig(**config, batch_size=size), workers=0) for size in (1, 5)
    )
    assert one == other


def _score(top1: int, n: int = 100) -> CorruptionScore:
    labels = torch.zeros(n, dtype=torch.int64)
    ranked = (torch.arange(n) >= top1).long()[:, None]
    return CorruptionScore("fog", 1, score_ranking(ranked, labels, class_count=2))


def test_means_relative_accuracy_and_curve() -> None:
    """Severities are averaged first, so that a corruption with fewer of them weighs as much as another."""
    cells = (
        CorruptionScore("fog", 1, _score(80).score),
        CorruptionScore("fog", 2, _score(60).score),
        CorruptionScore("snow", 1, _score(40).score),
    )
    score = RobustnessScore(_score(90).score, cells, bad_files=("bad.png",))
    assert score.errors == pytest.approx({"fog": 30, "snow": 60})
    assert score.mean == pytest.approx(55)
    assert score.relative == pytest.approx(100 * 55 / 90)
    assert score.curve == ((0, 90.0), (1, 60.0), (2, 60.0))
    said = json.loads(json.dumps(score.as_dict()))
    assert said["mean_error"] == pytest.approx(45)
    assert said["mce"] is None
    assert said["bad_files"] == ["bad.png"]
    assert said["cells"][1]["corruption"] == "fog"
    assert said["cells"][1]["severity"] == 2
    assert said["cells"][1]["top1"] == 60
    assert len(said["cells"][1]["interval"]) == 2
    assert said["curve"] == [[0, 90.0], [1, 60.0], [2, 60.0]]


def test_without_clean_images_there_is_no_relative_accuracy() -> None:
    score = RobustnessScore(None, (_score(50),))
    assert score.relative is None
    assert score.curve == ((1, 50.0),)
    assert score.as_dict()["clean"] is None
    assert RobustnessScore(_score(0).score, (_score(50),)).relative is None


def test_cells_that_are_done_are_taken_over() -> None:
    config = RobustnessConfig(corruptions=("fog", "contrast"), severities=(1, 2))
    told: list[CorruptionScore] = []
    found = robustness(Colours(THREE), _source(), config, workers=0, done=(_score(50),), on_cell=told.append)
    assert found.cells[0] == _score(50)
    assert [(cell.corruption, cell.severity) for cell in told] == [("fog", 2), ("contrast", 1), ("contrast", 2)]
    assert found.cells[1:] == tuple(told)


def test_images_are_spread_evenly() -> None:
    assert evenly(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly(3, 10).tolist() == evenly(3, None).tolist() == [0, 1, 2]
    assert evenly(0, 5).tolist() == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"corruptions": ("rain",)}, r"^rain is none of the common corruptions: .*$"),
        ({"severities": (0, 1)}, r"^a corruption has a severity from 1 to 5, not 0$"),
        ({"corruptions": ()}, r"^robustness needs at least one corruption and one severity$"),
        ({"severities": ()}, r"^robustness needs at least one corruption and one severity$"),
        ({"images": 0}, r"^robustness needs at least one image and one image a batch, got 0 and 128$"),
        ({"batch_size": 0}, r"^robustness needs at least one image and one image a batch, got 500 and 0$"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RobustnessConfig(**settings)  # type: ignore[arg-type]


def test_images_of_four_channels_are_refused_in_one_sentence() -> None:
    classifier = Colours(THREE)
    classifier.channels = 4
    source = ArraySource("four", np.zeros((2, 32, 32, 4), np.uint8), labels=[0, 1], classes=("red", "blue"))
    with pytest.raises(
        ValueError, match=r"^the common corruptions are made for grey and colour images, .* 4 channels$"
    ):
        robustness(classifier, source, RobustnessConfig(), workers=2)


# ---------------------------------------------------------------------------------------------- ImageNet-C


def test_alexnets_errors_are_the_means_of_those_by_severity() -> None:
    assert list(ALEXNET_ERRORS) == list(CORRUPTIONS) == list(ALEXNET_BY_SEVERITY)
    for name, errors in ALEXNET_BY_SEVERITY.items():
        assert ALEXNET_ERRORS[name] == pytest.approx(np.mean(errors), abs=1e-9)


def test_alexnets_mean_corruption_error_is_100() -> None:
    alexnet = {name: 100 * float(np.mean(errors)) for name, errors in ALEXNET_BY_SEVERITY.items()}
    assert mean_corruption_error(alexnet) == pytest.approx(100)
    assert mean_corruption_error({name: error / 2 for name, error in alexnet.items()}) == pytest.approx(50)
    worse = alexnet | {"brightness": 100.0}
    assert mean_corruption_error(worse) == pytest.approx(100 + (100 / 0.564592 - 100) / 15)


def _stored(
    path: Path, *, severities: tuple[int, ...] = SEVERITIES, inside: Callable[[str], str] = lambda _: ""
) -> Path:
    for number, name in enumerate(CORRUPTIONS):
        for severity in severities:
            place = path / inside(name) / name / str(severity)
            # The stronger, the more pictures show another colour than their folder says.
            for label, colour in enumerate((BLUE, RED)):
                folder = place / ("blue", "red")[label]
                folder.mkdir(parents=True)
                for image in range(3):
                    wrong = (number + severity + image) % 7 < 2
                    shown = (BLUE, RED)[1 - label] if wrong else colour
                    Image.fromarray(np.full((8, 8, 3), shown, np.uint8)).save(folder / f"{image}.png")
    return path


def _expected_error(name: str, severities: tuple[int, ...] = SEVERITIES) -> float:
    number = CORRUPTIONS.index(name)
    wrong = [[(number + severity + image) % 7 < 2 for image in range(3)] for severity in severities]
    return 100 * float(np.mean(wrong))


class _TwoClasses:
    """In place of timm's list of ImageNet's classes."""

    def __init__(self, subset: str) -> None:
        assert subset == "imagenet-1k"

    def label_names(self) -> list[str]:
        return ["blue", "red"]


def test_a_stored_set_has_the_mean_corruption_error_where_the_classes_are_imagenets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _stored(tmp_path / "c")
    classifier = Colours({"blue": BLUE, "red": RED}, size=8)
    found = stored_robustness(classifier, folder, RobustnessConfig(), workers=0)
    assert found.errors == pytest.approx({name: _expected_error(name) for name in CORRUPTIONS})
    assert found.mce is None
    assert found.clean is None
    assert len(found.cells) == 75
    monkeypatch.setattr(module, "ImageNetInfo", _TwoClasses)
    by_alexnet = np.mean([_expected_error(name) / np.mean(ALEXNET_BY_SEVERITY[name]) for name in CORRUPTIONS])
    complete = stored_robustness(classifier, folder, RobustnessConfig(), workers=0, done=found.cells)
    assert complete.mce == pytest.approx(by_alexnet)
    for config, judge in (
        (RobustnessConfig(severities=(1, 2, 3)), classifier),
        (RobustnessConfig(corruptions=("fog",)), classifier),
        (RobustnessConfig(), Colours(THREE, size=8)),
    ):
        assert stored_robustness(judge, folder, config, workers=0, done=found.cells).mce is None


def test_corruptions_are_found_in_folders_by_kind_and_missing_ones_are_left_out(tmp_path: Path) -> None:
    kind = {"fog": "weather", "contrast": "digital"}
    folder = _stored(tmp_path / "c", severities=(2, 3), inside=lambda name: kind.get(name, ""))
    (folder / "snow").rename(folder / "unknown")
    found = corruption_folders(folder)
    assert len(found) == 28
    assert found["fog", 2] == folder / "weather" / "fog" / "2"
    clean = ArraySource("clean", np.full((2, 8, 8, 3), BLUE, np.uint8), labels=[0, 1], classes=("blue", "red"))
    config = RobustnessConfig(corruptions=("fog", "snow", "pixelate"), severities=(1, 2, 3))
    score = stored_robustness(Colours(THREE, size=8), folder, config, workers=0, clean=clean)
    assert score.errors == pytest.approx({name: _expected_error(name, (2, 3)) for name in ("fog", "pixelate")})
    assert score.clean is not None
    assert score.clean.top1 == 50
    with pytest.raises(
        ValueError,
        match=r"^.* is not laid out as ImageNet-C: it has none of the folders asked for, like snow/1/CLASS$",
    ):
        stored_robustness(Colours(THREE, size=8), folder, RobustnessConfig(corruptions=("snow",)), workers=0)


@pytest.mark.parametrize(
    ("stored", "size"), [((72, 72), 72), ((224, 224), 224), ((224, 224), 96), ((96, 160), 96), ((64, 64), 48)]
)
def test_stored_images_are_not_cut_again(tmp_path: Path, stored: tuple[int, int], size: int) -> None:
    """Their whole middle square is seen, as the authors' own evaluation does."""
    height, width = stored
    seen: list[Tensor] = []

    class Watching(Colours):
        def __call__(self, images_BCHW: Tensor) -> Tensor:
            seen.extend(images_BCHW)
            return super().__call__(images_BCHW)

    pictures = [_picture(colour, 3, max(stored))[:height, :width] for colour in (BLUE, RED)]
    for name, picture in zip(("blue", "red"), pictures, strict=True):
        (tmp_path / "fog" / "1" / name).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "fog" / "1" / name / "0.png")
    config = RobustnessConfig(corruptions=("fog",))
    stored_robustness(Watching(THREE, size=size), tmp_path, config, workers=0)
    for image_CHW, picture in zip(seen, pictures, strict=True):
        left = (width - height) // 2
        middle = torch.from_numpy(picture[:, left : left + height].copy()).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(middle, size=(size, size), mode="bicubic", antialias=True)[0]
        assert torch.equal(image_CHW, expected)


@pytest.mark.parametrize("ratio", [None, 1.0, 0.5])
def test_other_images_are_cut_as_the_classifier_is_used_to(ratio: float | None) -> None:
    """A blue frame around a red middle."""
    framed = np.full((160, 160, 3), BLUE, np.uint8)
    framed[40:120, 40:120] = RED
    source = ArraySource("framed", np.stack([framed, framed]), labels=[0, 2], classes=tuple(THREE))
    classifier = Colours(THREE, size=80)
    classifier.crop_ratio = ratio
    blue, red = 100 * np.array([1, 0]), 100 * np.array([0, 1])
    judgement = shifted(classifier, source.subset([0, 1]), workers=0)
    assert judgement.score.n == 2
    found = robustness(
        classifier, source, RobustnessConfig(corruptions=("pixelate",), severities=(1,), images=1), workers=0
    )
    assert found.clean is not None
    # The whole image is a quarter red, the middle half of its sides all red.
    assert found.clean.top1 == (red if ratio == 0.5 else blue)[0]
    assert found.cells[0].score.top1 == found.clean.top1
