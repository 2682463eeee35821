"""COCO files: every layout is found, outlines are those of pycocotools, and nonsense is told in a sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as oracle
from pycocotools.coco import COCO

from unmask.data.coco import CocoSource, detection_halves, open_detection
from unmask.data.decode import DecodeError
from unmask.data.layout import hashed_test_mask

TREES = Path(__file__).parents[1] / "data_files" / "trees"
HEIGHT, WIDTH = 20, 30


def box_outline(left: float, top: float, width: float, height: float) -> list[list[float]]:
    return [[left, top, left + width, top, left + width, top + height, left, top + height]]


def content(count: int = 3, *, first: int = 0) -> dict[str, Any]:
    """`count` images; image n has n + 1 cats, and the last thing in each is a dog."""
    images, annotations = [], []
    for n in range(first, first + count):
        images.append({"id": 100 + n, "file_name": f"{n:03d}.png", "height": HEIGHT, "width": WIDTH})
        for place in range(n - first + 1):
            box = [place + 0.5, 2.0, 8.0, 6.5]
            annotations.append(
                {
                    "id": 1000 + len(annotations),
                    "image_id": 100 + n,
                    "category_id": 7 if place == n - first else 3,
                    "bbox": box,
                    "segmentation": box_outline(*box),
                    "area": 52.0,
                    "iscrowd": 0,
                }
            )
    annotations.reverse()  # a file's annotations are in no order
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(folder: Path, file: Path, values: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))
    for entry in values["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(folder / entry["file_name"])


def opened(folder: Path, values: Any, split: str = "all") -> CocoSource:
    """The source of a folder with this file alone."""
    folder.mkdir(exist_ok=True)
    (folder / "annotations.json").write_text(json.dumps(values))
    source = open_detection(folder, split)  # type: ignore[arg-type]
    assert isinstance(source, CocoSource)
    return source


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (("train2017", "annotations/instances_train2017.json"), ("val2017", "annotations/instances_val2017.json")),
        (("train2014", "annotations/instances_train2014.json"), ("val2014", "annotations/instances_val2014.json")),
        (("train", "annotations/instances_train.json"), ("val", "annotations/instances_val.json")),
        (("train", "train/annotations.json"), ("val", "val/annotations.json")),
        (("train", "train/_annotations.coco.json"), ("valid", "valid/_annotations.coco.json")),
        (("train", "train.json"), ("test", "test.json")),
    ],
    ids=lambda pair: pair[1],
)
def test_every_layout_is_found(tmp_path: Path, train: tuple[str, str], test: tuple[str, str]) -> None:
    write(tmp_path / train[0], tmp_path / train[1], content(3))
    write(tmp_path / test[0], tmp_path / test[1], content(2, first=5))
    for first, second in (
        detection_halves(tmp_path),
        (open_detection(tmp_path, "all"), open_detection(tmp_path, "test")),
    ):
        assert first.classes == second.classes == ("cat", "dog")
        assert first.has_masks
        assert [Path(first.path(n)).name for n in range(len(first))] == ["000.png", "001.png", "002.png"]
        assert [Path(second.path(n)).name for n in range(len(second))] == ["005.png", "006.png"]
        assert isinstance(first.read(2), bytes)
        assert isinstance(second.read(1), bytes)
        # In the file's order, which is reversed.
        assert first.things(2).labels_K.tolist() == [1, 0, 0]
        np.testing.assert_array_equal(
            first.things(2).boxes_K4, [[2.5, 2, 10.5, 8.5], [1.5, 2, 9.5, 8.5], [0.5, 2, 8.5, 8.5]]
        )


@pytest.mark.parametrize("images", ["", "images"])
@pytest.mark.parametrize("given_as", ["", "annotations.json"])
def test_one_folder_is_cut_by_a_hash_of_its_names(tmp_path: Path, images: str, given_as: str) -> None:
    write(tmp_path / images, tmp_path / "annotations.json", content(20))
    train, test = detection_halves(tmp_path / given_as)
    names = [f"{n:03d}.png" for n in range(20)]
    hidden = hashed_test_mask([name.encode() for name in names], None)
    assert [Path(test.path(n)).name for n in range(len(test))] == [names[n] for n in np.flatnonzero(hidden)]
    assert [Path(train.path(n)).name for n in range(len(train))] == [names[n] for n in np.flatnonzero(~hidden)]
    for source in (train, test):
        for n in range(len(source)):
            assert len(source.things(n).labels_K) == int(Path(source.path(n)).stem) + 1
            assert isinstance(source.read(n), bytes)
    assert len(open_detection(tmp_path / given_as, "all")) == 20


def test_real_boxes_are_those_that_pycocotools_reads(capsys: pytest.CaptureFixture[str]) -> None:
    train, test = detection_halves(TREES)
    for source, half in ((train, "train"), (test, "val")):
        coco = COCO(str(TREES / half / "annotations.json"))
        capsys.readouterr()
        assert source.classes == ("tree",)
        assert not source.has_masks
        assert isinstance(source, CocoSource)
        assert source.without_outline == len(coco.anns)
        for n in range(len(source)):
            (image,) = (entry for entry in coco.imgs.values() if source.path(n).endswith(entry["file_name"]))
            things = source.things(n)
            boxes = np.array([thing["bbox"] for thing in coco.loadAnns(coco.getAnnIds(image["id"]))])
            np.testing.assert_allclose(things.boxes_K4[:, :2], boxes[:, :2])
            np.testing.assert_allclose(things.boxes_K4[:, 2:], boxes[:, :2] + boxes[:, 2:], rtol=1e-6)
            assert things.masks_KHW is None
            assert not things.crowd_K.any()


def test_the_built_in_scenes_have_things_too() -> None:
    train, test = detection_halves("builtin:scenes")
    assert (len(train), len(test)) == (2000, 400)
    assert len(open_detection("builtin:scenes", "test")) == 400
    assert train.has_masks


def plain_run_lengths(mask_HW: np.ndarray) -> list[int]:
    counts, value = [0], 0
    for pixel in mask_HW.T.ravel():
        if pixel != value:
            value = pixel
            counts.append(0)
        counts[-1] += 1
    return counts


@settings(max_examples=40, deadline=None)
@given(
    bits=st.lists(st.booleans(), min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH),
    corners=st.lists(
        st.lists(st.tuples(st.floats(0, WIDTH), st.floats(0, HEIGHT)), min_size=3, max_size=8), min_size=1, max_size=3
    ),
)
def test_outlines_are_those_that_pycocotools_draws(
    tmp_path_factory: pytest.TempPathFactory, bits: list[bool], corners: list[list[tuple[float, float]]]
) -> None:
    mask_HW = np.array(bits, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    compressed = oracle.encode(np.asfortranarray(mask_HW))
    polygons = [[value for corner in polygon for value in corner] for polygon in corners]
    outlines: list[Any] = [
        {"size": [HEIGHT, WIDTH], "counts": plain_run_lengths(mask_HW)},
        {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()},
        polygons,
    ]
    values = content(1)
    thing = values["annotations"][0]
    values["annotations"] = [thing | {"id": n, "segmentation": outline} for n, outline in enumerate(outlines)]
    source = opened(tmp_path_factory.mktemp("coco"), values)
    found = source.things(0).masks_KHW
    assert found is not None
    np.testing.assert_array_equal(found[0], mask_HW)
    np.testing.assert_array_equal(found[1], mask_HW)
    drawn = oracle.decode(oracle.merge(oracle.frPyObjects(polygons, HEIGHT, WIDTH)))
    np.testing.assert_array_equal(found[2], drawn)


def test_corners_far_outside_are_drawn_at_once(tmp_path: Path) -> None:
    values = content(1)
    far = [[-1e300, -1e300, 1e300, -1e300, 1e300, 1e300, -1e300, 1e300], [10, 5, 1e9, 5, 1e9, 12, 10, 12]]
    thing = values["annotations"][0]
    values["annotations"] = [thing | {"id": n, "segmentation": [polygon]} for n, polygon in enumerate(far)]
    found = opened(tmp_path, values).things(0).masks_KHW
    assert found is not None
    assert found[0].all()
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    expected[5:12, 10:] = True
    np.testing.assert_array_equal(found[1], expected)


def test_crowds_are_told_and_images_without_things_are_only_tested(tmp_path: Path) -> None:
    values = content(12)
    for entry in values["annotations"]:
        if entry["image_id"] in (100, 101, 102, 103):
            entry["iscrowd"] = 1
    values["annotations"] = [entry for entry in values["annotations"] if entry["image_id"] not in (104, 105)]
    write(tmp_path / "train", tmp_path / "train.json", values)
    write(tmp_path / "val", tmp_path / "val.json", values)
    train, test = detection_halves(tmp_path)
    assert isinstance(train, CocoSource)
    assert isinstance(test, CocoSource)
    assert (len(train), train.unannotated) == (6, 6)
    assert (len(test), test.unannotated) == (12, 0)
    assert Path(train.path(0)).name == "006.png"
    assert len(train.things(0).labels_K) == 7
    assert test.things(3).crowd_K.tolist() == [True] * 4
    nothing = test.things(4)
    assert nothing.boxes_K4.shape == (0, 4)
    assert nothing.masks_KHW is not None
    assert nothing.masks_KHW.shape == (0, HEIGHT, WIDTH)


def test_boxes_that_leave_by_a_pixel_are_clipped_and_those_without_area_counted(tmp_path: Path) -> None:
    values = content(1)
    thing = values["annotations"][0]
    boxes = [[-1, -1, 10, 10], [25, 15, 6, 6], [5, 5, 0, 4], [5, 5, 4, -2], [WIDTH, 0, 1, 5]]
    values["annotations"] = [thing | {"id": n, "bbox": box} for n, box in enumerate(boxes)]
    source = opened(tmp_path, values)
    assert source.empty_boxes == 3
    np.testing.assert_array_equal(source.things(0).boxes_K4, [[0, 0, 9, 9], [25, 15, WIDTH, HEIGHT]])


def test_one_thing_without_an_outline_leaves_boxes_alone(tmp_path: Path) -> None:
    values = content(2)
    del values["annotations"][0]["segmentation"]
    values["annotations"][1]["segmentation"] = [[1.0, 1.0, 2.0, 2.0]]  # a line
    source = opened(tmp_path, values)
    assert not source.has_masks
    assert source.without_outline == 2
    assert source.things(0).masks_KHW is None


def test_numbers_of_categories_may_differ_between_the_halves(tmp_path: Path) -> None:
    write(tmp_path / "train", tmp_path / "train.json", content(2))
    other = content(2)
    other["categories"] = [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]
    write(tmp_path / "val", tmp_path / "val.json", other)
    train, test = detection_halves(tmp_path)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.things(1).labels_K.tolist() == [1, 0]
    assert test.things(1).labels_K.tolist() == [0, 1]


def test_missing_files_and_other_sizes_are_bad_files(tmp_path: Path) -> None:
    write(tmp_path, tmp_path / "annotations.json", content(2))
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "000.png")
    (tmp_path / "001.png").unlink()
    source = open_detection(tmp_path, "all")
    with pytest.raises(DecodeError, match=r"^it has 20 x 30 pixels, its annotations are for 30 x 20$"):
        source.read(0)
    with pytest.raises(FileNotFoundError):
        source.read(1)


@pytest.mark.parametrize("counts", ["zzz", "~~~~~~~~~~~~~~", ""])
def test_broken_run_lengths_are_a_bad_file(tmp_path: Path, counts: str) -> None:
    values = content(1)
    values["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
    with pytest.raises(DecodeError, match=r"^an outline in its annotations cannot be read: "):
        opened(tmp_path, values).things(0)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The content with one value set, or taken away by `...`."""
    values: Any = content()
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = values
    for part in way:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "has no list of 'images'; a COCO file has lists of images, annotations, categories"),
        (
            changed("categories", ...),
            "has no list of 'categories'; a COCO file has lists of images, annotations, categ",
        ),
        (
            changed("annotations", {}),
            "has no list of 'annotations'; a COCO file has lists of images, annotations, categ",
        ),
        (changed("annotations", []), "has no annotation"),
        (changed("images.1.width", ...), "image number 2 has no 'width'"),
        (changed("images.1", 3), "image number 2 has no 'id'"),
        (changed("images.1.width", 0), "image 101 must have a height and a width from 1 to 64000000 pixels"),
        (changed("images.1.id", 100), "image 100 is there twice"),
        (changed("images.1.id", []), "image number 2 must have an id and a file name"),
        (changed("images.0.file_name", ""), "image number 1 must have an id and a file name"),
        (changed("categories.0.name", ...), "category number 1 has no 'name'"),
        (
            changed("categories.0.id", "a"),
            "category number 1 must have a whole number as its id and a text as its name",
        ),
        (changed("images.1.width", 10**30), "image 101 must have a height and a width from 1 to 64000000 pixels"),
        (changed("images.1.file_name", "\ud800.png"), "image number 2 must have an id and a file name"),
        (
            changed("annotations.2.image_id", "a\nb"),
            r"annotation 1003 is of image 'a\nb', which is not among its images",
        ),
        (changed("categories.0.id", 3), "category 3, 'cat', is there twice"),
        (changed("categories.0.name", "cat"), "category 3, 'cat', is there twice"),
        (changed("annotations.2.bbox", ...), "annotation number 3 has no 'bbox'"),
        (changed("annotations.2.image_id", 9), "annotation 1003 is of image 9, which is not among its images"),
        (changed("annotations.2.image_id", [1]), "annotation 1003 is of image [1], which is not among its images"),
        (
            changed("annotations.2.category_id", 9),
            "annotation 1003 is of category 9, which is not among its categories",
        ),
        (changed("annotations.2.bbox", [1, 2, 3]), "annotation 1003 must have a box of four numbers, got [1, 2, 3]"),
        (
            changed("annotations.2.bbox", [1, 2, 3, float("nan")]),
            "annotation 1003 must have a box of four numbers, got [1, 2, 3, nan]",
        ),
        (
            changed("annotations.2.bbox", [1, 2, 3, 10**400]),
            "annotation 1003 must have a box of four numbers, got [1, 2, 3, 1000",
        ),
        (
            changed("annotations.2.bbox", [25, 2, 7, 3]),
            "annotation 1003 has the box [25, 2, 7, 3], which leaves its image '002.png' of 30 x 20 pixels",
        ),
        (
            changed("annotations.2.bbox", [1, -1.5, 7, 3]),
            "annotation 1003 has the box [1, -1.5, 7, 3], which leaves its image '002.png' of 30 x 20 pixels",
        ),
        (
            changed("annotations.2.segmentation", "a"),
            "annotation 1003 must have an outline of lists of numbers or of run lengths",
        ),
        (
            changed("annotations.2.segmentation", [1, 1, 2, 2, 3, 3]),
            "annotation 1003 must have an outline of lists of numbers or of run lengths",
        ),
        (
            changed("annotations.2.segmentation", [[1, 1, 2, 2, 3, float("inf")]]),
            "annotation 1003 must have an outline of lists of numbers or of run lengths",
        ),
        (
            changed("annotations.2.segmentation", {"size": [5, 5], "counts": [25]}),
            "annotation 1003 has an outline of size [5, 5], its image is [20, 30]",
        ),
        (
            changed("annotations.2.segmentation", {"size": [20, 30], "counts": [1, -1]}),
            "annotation 1003 must have run lengths that are whole numbers or compressed text",
        ),
        (
            changed("annotations.2.segmentation", {"size": [20, 30], "counts": [25]}),
            "annotation 1003 has run lengths of 25 pixels, its image has 600",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_a_file_cannot_say_is_told_in_a_sentence(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        opened(tmp_path, values)
    told = str(caught.value).removeprefix(f"{tmp_path}/annotations.json").lstrip(": ")
    assert told.startswith(message)


def test_annotations_without_a_number_are_counted(tmp_path: Path) -> None:
    values = changed("annotations.2.category_id", 9)
    for entry in values["annotations"]:
        del entry["id"]
    with pytest.raises(ValueError, match=r"annotation number 3 is of category 9, which is not among its categories$"):
        opened(tmp_path, values)


def test_files_that_are_not_there_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing does not exist$"):
        open_detection(tmp_path / "missing", "train")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes.txt is neither a folder nor a COCO .json file$"):
        open_detection(tmp_path / "notes.txt", "train")
    with pytest.raises(ValueError, match=r"holds no annotations in COCO's layout"):
        open_detection(tmp_path, "train")
    (tmp_path / "annotations.json").write_text("{")
    with pytest.raises(ValueError, match=r"annotations.json is not JSON: "):
        open_detection(tmp_path, "train")
    (tmp_path / "annotations.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"annotations.json is not JSON: "):
        open_detection(tmp_path, "train")


def test_halves_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "train", tmp_path / "train" / "annotations.json", content())
    with pytest.raises(ValueError, match=r"has train/annotations.json but no annotations of test images beside it$"):
        detection_halves(tmp_path)
    other = copy.deepcopy(content())
    other["categories"].append({"id": 1, "name": "bird"})
    write(tmp_path / "val", tmp_path / "val" / "annotations.json", other)
    with pytest.raises(ValueError, match=r"not the same categories for training and testing: bird is only in one of"):
        detection_halves(tmp_path)


def test_halves_without_images(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(content(1)))
    with pytest.raises(ValueError, match=r"has no image for testing$"):
        open_detection(tmp_path, "test")
    crowds = content(1)
    crowds["annotations"][0]["iscrowd"] = 1
    (tmp_path / "annotations.json").write_text(json.dumps(crowds))
    with pytest.raises(ValueError, match=r"has no image for training in which a thing is marked$"):
        open_detection(tmp_path, "train")
    flat = content(1)
    flat["annotations"][0]["bbox"] = [1, 1, 0, 0]
    (tmp_path / "annotations.json").write_text(json.dumps(flat))
    with pytest.raises(ValueError, match=r"annotations.json has no annotation with a box of any area$"):
        open_detection(tmp_path, "all")
