"""What a folder holds: every file that is damaged, copied, grey or odd is counted and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tiny_runs import draw_images
from unmask.data.halves import Halves, Told, open_halves
from unmask.data.sources import FileSource
from unmask.data.statistics import mean_and_std
from unmask.data.stored import PixelRange
from unmask.data.survey import SurveyConfig, spread_over, survey

ALL = SurveyConfig(decoded=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and test images, among them two exact copies, of which one is in the other half, one that was saved
    again there, one of one colour, two files that are no images, and a photograph cut short."""
    folder = tmp_path_factory.mktemp("survey")
    draw_images(folder / "train", 40)
    draw_images(folder / "val", 10, side=48)
    for path in (folder / "val").rglob("*.png"):
        with Image.open(path) as image:  # else they are the training images in another size
            mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mirrored.save(path)
    first = folder / "train" / "cold" / "000.png"
    shutil.copy(first, folder / "train" / "cold" / "copy.png")
    shutil.copy(first, folder / "val" / "cold" / "leak.png")
    with Image.open(folder / "train" / "warm" / "001.png") as image:
        image.resize((80, 80), Image.Resampling.BICUBIC).save(folder / "val" / "warm" / "again.jpg", quality=90)
    Image.new("RGB", (20, 90), "green").save(folder / "train" / "warm" / "plain.png")
    Image.new("L", (30, 30), 7).save(folder / "train" / "warm" / "grey.png")
    (folder / "train" / "cold" / "empty.png").write_bytes(b"")
    (folder / "val" / "warm" / "notes.jpg").write_bytes(b"no image")
    coins = Path(__file__).parents[1] / "data_files" / "coins" / "train" / "images" / "upper.jpg"
    (folder / "train" / "cold" / "cut.jpg").write_bytes(coins.read_bytes()[:-900])
    return folder


def test_everything_is_found(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    found = survey(open_halves(str(folder)), ALL, report=lambda done, total: told.append((done, total)))
    assert told == [(32, 58), (58, 58)]
    assert (found.read, found.decoded) == (58, 58)
    names = found.as_dict()
    assert names["images"] == {"pretraining": 45, "training": 45, "testing": 13}
    assert {Path(name).name: reason.split(":")[0] for name, reason in names["bad_files"].items()} == {
        "empty.png": "the file is empty",
        "cut.jpg": "it cannot be decoded",
        "notes.jpg": "it is not an image of a known format",
    }
    (exact,), (near,) = names["duplicates"], names["near_duplicates"]
    assert [Path(name).name for name in exact] == ["000.png", "copy.png", "leak.png"]
    assert [Path(name).name for name in near] == ["001.png", "again.jpg"]
    assert names["in_both_halves"] == [exact, near]
    assert (found.copies(exact=True), found.copies(exact=False)) == (2, 1)
    assert found.uniform == 2
    assert found.grey == 0  # green is a colour
    assert names["height"] == {"smallest": 30, "median": 32, "largest": 90}
    assert names["formats"] == {"png": 54, "jpg": 1}
    assert names["dtypes"] == {"uint8": 55}
    assert {channels: values["images"] for channels, values in names["channels"].items()} == {"3": 54, "1": 1}
    assert names["bytes"]["total"] == sum(
        path.stat().st_size
        for path in folder.rglob("*.*")
        if path.suffix != ".csv" and path.name not in ("empty.png", "cut.jpg", "notes.jpg")
    )
    assert found.smaller_than(32, 32) == pytest.approx(2 / 55)
    assert found.longer_than(3) == pytest.approx(1 / 55)
    json.dumps(names)


def test_only_a_sample_is_decoded_and_damage_behind_headers_stays_unseen(folder: Path) -> None:
    found = survey(open_halves(str(folder)), SurveyConfig(decoded=1))
    assert (found.read, found.decoded) == (58, 1)
    assert sum(values.count for values in found.values.values()) == 1
    assert {Path(note.path).name for note in found.bad} == {"empty.png", "notes.jpg"}
    assert len(found.sizes_N2) == 56
    assert [group.exact for group in found.groups] == [True]
    part = survey(open_halves(str(folder)), SurveyConfig(read=10, decoded=None))
    assert (part.read, part.decoded) == (10, 10)
    assert part.positions_N.min() == 0


def test_the_values_are_those_of_the_statistics(tmp_path: Path) -> None:
    halves = open_halves(str(draw_images(tmp_path, 12)))
    mean, std = survey(halves, ALL).values[3].mean_and_std
    expected_mean, expected_std = mean_and_std(halves.pretraining, channels=3)
    assert mean == pytest.approx(expected_mean)
    assert std == pytest.approx(expected_std)


def test_the_number_of_processes_changes_nothing(folder: Path) -> None:
    one, two = (survey(open_halves(str(folder)), SurveyConfig(workers=workers)) for workers in (0, 2))
    assert one.as_dict() == two.as_dict()


def test_wide_images_of_many_channels_in_their_range(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays_NHWC = (gaussian_filter(generator.random((9, 40, 30, 5)), (0, 2, 2, 0)) * 4000).astype(np.uint16)
    arrays_NHWC[3] = arrays_NHWC[7]
    for number, array_HWC in enumerate(arrays_NHWC):
        np.save(tmp_path / f"{number}.npy", array_HWC)
    source = FileSource(str(tmp_path), tmp_path, [f"{number}.npy".encode() for number in range(9)])
    halves = Halves(source, source, 9, (), "no labels", Told()).in_range(PixelRange(low=(1000.0,), high=(3000.0,)))
    found = survey(halves, ALL)
    assert (found.dtypes, found.kinds) == ({"uint16": 9}, {"npy": 9})
    mean, _ = found.values[5].mean_and_std
    expected = np.clip((arrays_NHWC.astype(np.float64) - 1000) / 2000, 0, 1).mean(axis=(0, 1, 2))
    assert mean == pytest.approx(expected, abs=0.003)
    assert [group.positions for group in found.groups] == [(3, 7)]
    assert found.leaks == ()  # nothing is judged


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"no readable image in .*, for example .*\.png: the file is empty"):
        survey(open_halves(str(tmp_path)), ALL)


@pytest.mark.parametrize("values", [{"read": 0}, {"decoded": 0}, {"workers": -1}])
def test_a_look_at_nothing_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        SurveyConfig(**values)


def test_positions_are_spread_evenly() -> None:
    assert spread_over(10, 3).tolist() == [0, 4, 9]
    assert spread_over(3, 10).tolist() == spread_over(3, None).tolist() == [0, 1, 2]
    for total, count in ((1000, 999), (7, 6), (64, 1)):
        assert len(set(spread_over(total, count).tolist())) == count
