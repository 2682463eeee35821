"""Altered configurations are exactly a run or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzzing import altered_text, answer
from tiny_classifiers import BARE
from tiny_runs import tiny_config
from tiny_supervised import supervised
from unmask.config import RunConfig, load_config
from unmask.supervised.config import SupervisedConfig, load_supervised

Fuzz = Callable[..., None]


def plain(config: RunConfig | SupervisedConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(config.as_dict()))
    return found


@pytest.mark.parametrize("method", ["conmim", "dino", "convmae"])
def test_configurations(fuzz: Fuzz, tmp_path: Path, method: str) -> None:
    path = tmp_path / "config.json"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(lambda: load_config(path), ValueError)

    fuzz(altered_text(plain(tiny_config(method, Path("photos")))), check, examples=25)


def test_supervised_configurations(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "config.json"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(lambda: load_supervised(path), ValueError)

    fuzz(altered_text(plain(supervised(Path("photos"), Path("encoder"), BARE))), check, examples=25)
