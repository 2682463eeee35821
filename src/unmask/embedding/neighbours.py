"""Nearest images by cosine, found in files of features block by block.

Shape legend: N images of a block, Q queries, D feature dimensions, K nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Doc

from unmask.embedding.rows import FeatureFile, Row


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An image that is near a query."""

    similarity: Annotated[float, Doc("Cosine of the two features, 1 at most.")]
    file: Annotated[FeatureFile, Doc("The file that holds its features.")]
    row: Annotated[Row, Doc("Which image it is.")]


def normalised(features: NDArray[np.generic]) -> NDArray[np.float32]:
    """Features [N, D] as float32 of length 1; zeros stay zeros."""
    x_ND = features.astype(np.float32)
    # Scaled first: halves can be so small or large that their squares leave float32.
    x_ND /= np.maximum(np.abs(x_ND).max(axis=1, keepdims=True, initial=0), np.float32(1e-30))
    x_ND /= np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), np.float32(1e-30))
    return x_ND


def as_cosine(value: float) -> float:
    """A cosine without what rounding adds: features that are equal have 1."""
    return min(1.0, max(-1.0, round(value, 6)))


def nearest(files: Sequence[FeatureFile], queries_QD: NDArray[np.float32], top: int) -> list[list[Hit]]:
    """The `top` images nearest to each query, nearest first, of equal ones the first. Memory is that of one block.

    `queries_QD` are normalised.
    """
    best_QK = np.empty((len(queries_QD), 0), dtype=np.float32)
    where_QK2 = np.empty((len(queries_QD), 0, 2), dtype=np.int64)
    for place, file in enumerate(files):
        for number in range(len(file.starts) - 1):
            block_ND = normalised(file.block(number))
            cosine_QN = np.concatenate([best_QK, queries_QD @ block_ND.T], axis=1)
            rows_N = np.arange(file.starts[number], file.starts[number + 1])
            here_N2 = np.stack([np.full_like(rows_N, place), rows_N], axis=1)
            here_QN2 = np.broadcast_to(here_N2, (len(queries_QD), *here_N2.shape))
            order_QK = np.argsort(-cosine_QN, axis=1, kind="stable")[:, :top]
            best_QK = np.take_along_axis(cosine_QN, order_QK, axis=1)
            where_QK2 = np.take_along_axis(np.concatenate([where_QK2, here_QN2], axis=1), order_QK[..., None], axis=1)
    rows = rows_of(files, [(int(place), int(row)) for place, row in where_QK2.reshape(-1, 2)])
    each = min(top, best_QK.shape[1])
    hits = [
        Hit(similarity=as_cosine(value), file=file, row=row)
        for value, (file, row) in zip(best_QK.reshape(-1).tolist(), rows, strict=True)
    ]
    return [hits[query * each : (query + 1) * each] for query in range(len(queries_QD))]


def rows_of(files: Sequence[FeatureFile], wanted: Sequence[tuple[int, int]]) -> list[tuple[FeatureFile, Row]]:
    """The images that are named by number of file and number of row."""
    found: dict[tuple[int, int], Row] = {}
    for place, several in groupby(sorted(set(wanted)), key=lambda one: one[0]):
        numbers = [row for _, row in several]
        found |= {(place, number): row for number, row in zip(numbers, files[place].rows(numbers), strict=True)}
    return [(files[place], found[place, row]) for place, row in wanted]
