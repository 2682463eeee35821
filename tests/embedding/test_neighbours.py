"""The nearest images are those of a plain matrix product, whatever the kind of file and the size of its blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiny_features import feature_file
from unmask.embedding.files import open_comparable, open_features
from unmask.embedding.neighbours import as_cosine, nearest, normalised


@pytest.fixture
def many() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((37, 6)).astype(np.float32)


@pytest.mark.parametrize("kind", ["parquet", "npy", "safetensors"])
@pytest.mark.parametrize("each", [4, 50])
def test_nearest_of_all_blocks_and_files(tmp_path: Path, many: np.ndarray, kind: str, each: int) -> None:
    one = feature_file(tmp_path / f"one.{kind}", many[:20], each=each)
    two = feature_file(tmp_path / f"two.{kind}", many[20:], each=each)
    files = open_comparable([one, two])
    queries = normalised(many[[3, 30, 11]] + 0.1)
    expected = queries @ normalised(many).T
    for found, cosines in zip(nearest(files, queries, 5), expected, strict=True):
        order = np.argsort(-cosines)[:5]
        assert [(hit.file.path, hit.row.index) for hit in found] == [
            (one, k) if k < 20 else (two, k - 20) for k in order.tolist()
        ]
        assert [hit.row.path for hit in found] == [f"{hit.row.index}.png" for hit in found]
        np.testing.assert_allclose([hit.similarity for hit in found], cosines[order], atol=2e-6)


def test_no_more_is_found_than_there_is_and_equal_ones_keep_their_order(tmp_path: Path, many: np.ndarray) -> None:
    same = np.repeat(many[:1], 5, axis=0)
    file = open_features(feature_file(tmp_path / "f.npy", same, each=2))
    (found,) = nearest([file], normalised(same[:1]), 10)
    assert [hit.row.index for hit in found] == [0, 1, 2, 3, 4]
    assert {hit.similarity for hit in found} == {1.0}


def test_length_of_features() -> None:
    halves = np.array([[6e4, 6e4], [6e-8, 0], [0, 0], [3, -4]], dtype=np.float16)
    unit = normalised(halves)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[0.5**0.5] * 2, [1, 0], [0, 0], [0.6, -0.8]], atol=1e-6)
    assert (as_cosine(1.0000001), as_cosine(-1.1), as_cosine(0.12345649)) == (1.0, -1.0, 0.123456)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"checksum": "b"}, "two.npy come from different encoders (gone, gone): their features cannot be compared"),
        ({"block": 2}, "two.npy cannot be compared: block 1 and 2"),
        ({"image_size": (8, 16)}, "two.npy cannot be compared: image size (8, 8) and (8, 16)"),
        ({"output": "class"}, "two.npy cannot be compared: output mean and class"),
        ({"output": "dense"}, "two.npy holds maps, and one feature an image is needed: embed with --output mean"),
    ],
)
def test_files_that_do_not_compare(tmp_path: Path, many: np.ndarray, other: dict[str, object], said: str) -> None:
    one = feature_file(tmp_path / "one.npy", many)
    two = feature_file(tmp_path / "two.npy", many, **other)
    with pytest.raises(ValueError, match=r"compare|maps") as refused:
        open_comparable([one, two])
    assert str(refused.value).endswith(said)
