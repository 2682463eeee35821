"""Groups are the connected parts of the graph of all near pairs, whatever the blocks."""

from __future__ import annotations

from pathlib import Path

import networkx
import numpy as np
import pytest

from tiny_features import feature_file
from unmask.embedding import near_duplicates as rooms
from unmask.embedding.files import open_comparable
from unmask.embedding.near_duplicates import Groups, near_duplicates
from unmask.embedding.neighbours import normalised


@pytest.mark.parametrize(("side", "each"), [(2048, 8), (8, 4), (5, 16), (8, 64)])
def test_groups_are_those_of_the_whole_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, each: int
) -> None:
    monkeypatch.setattr(rooms, "SIDE", side)
    monkeypatch.setattr(rooms, "_MOST_PAIRS", 3)
    features = np.random.default_rng(1).standard_normal((60, 3)).astype(np.float32)
    features[[7, 19, 41]] = features[2]
    names = [(0, k) for k in range(35)] + [(1, k) for k in range(25)]
    files = open_comparable(
        [
            feature_file(tmp_path / "one.parquet", features[:35], each=each),
            feature_file(tmp_path / "two.npy", features[35:], each=each),
        ]
    )
    unit = normalised(features)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -1)
    graph = networkx.from_numpy_array(cosine >= 0.99)
    expected = sorted(
        (sorted(part) for part in networkx.connected_components(graph) if len(part) > 1),
        key=lambda part: (-len(part), part[0]),
    )
    assert len(expected) > 3
    told: list[tuple[int, int]] = []
    groups = near_duplicates(files, 0.99, lambda done, total: told.append((done, total)))
    found = [[(files.index(hit.file), hit.row.index) for hit in group.images] for group in groups]
    assert found == [[names[k] for k in part] for part in expected]
    assert told[-1][0] == told[-1][1] == len(told)
    for group, part in zip(groups, expected, strict=True):
        most = cosine[part].max(axis=1)
        np.testing.assert_allclose([hit.similarity for hit in group.images], most, atol=2e-6)


def test_exact_duplicates_have_one_and_reach_the_threshold_one(tmp_path: Path) -> None:
    features = np.random.default_rng(2).standard_normal((9, 300)).astype(np.float32)
    features[4] = features[8]
    (group,) = near_duplicates(open_comparable([feature_file(tmp_path / "f.npy", features)]), 1.0)
    assert [(hit.row.index, hit.similarity) for hit in group.images] == [(4, 1.0), (8, 1.0)]


def test_nothing_is_near(tmp_path: Path) -> None:
    files = open_comparable([feature_file(tmp_path / "f.npy", np.eye(5, dtype=np.float32))])
    assert near_duplicates(files, 0.5) == []


def test_many_equal_images_do_not_keep_their_pairs() -> None:
    groups = Groups(1000)
    for _ in range(20):
        first, second = np.triu_indices(1000, 1)
        groups.join(first, second)
        groups._settle()
        assert groups._waiting == 0
    (all_of_them,) = groups.members()
    assert len(all_of_them) == 1000
