"""An encoder is scored beside raw pixels and its own random start, and the difference is put into words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from tiny_runs import draw_images, tiny_config
from unmask.data.sources import labelled
from unmask.evaluate import EvaluationSettings, Protocol, compare, evaluate
from unmask.evaluation.full_linear import FullLinearConfig
from unmask.evaluation.knn import KnnConfig, knn
from unmask.evaluation.linear import LinearConfig
from unmask.evaluation.metrics import Score
from unmask.evaluation.protocols import encoder_features
from unmask.models.pretrained import open_encoder
from unmask.pretrain import build_method, pretrain, random_start
from unmask.run_folder import RunFolder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run "run" on labelled images "data"."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = tiny_config("mae", draw_images(folder / "data", 24), seed=7)
    fast = replace(config.settings, optimizer=replace(config.settings.optimizer, lr=0.01, lr_batch=None))
    pretrain(replace(config, settings=fast), RunFolder(folder / "run"), Console(quiet=True))
    return folder


def settings_of(protocol: Protocol, *, seed: int = 0) -> EvaluationSettings:
    return EvaluationSettings(
        protocol=protocol,
        pooling="mean",
        knn=KnnConfig(k=3),
        linear=LinearConfig(),
        full_linear=FullLinearConfig(epochs=1, batch_size=8),
        seed=seed,
        workers=0,
        device=CPU,
    )


@pytest.mark.parametrize("protocol", ["knn", "linear", "full-linear"])
def test_floors_come_first_and_all_are_scored_on_the_same_images(finished: Path, protocol: Protocol) -> None:
    halves = labelled(str(finished / "data"))
    announced: list[str] = []
    found = list(evaluate(str(finished / "run"), halves, settings_of(protocol), floors=True, on_start=announced.append))
    assert [evaluation.network for evaluation in found] == ["pixels", "random", "pretrained"] == announced
    assert {evaluation.protocol for evaluation in found} == {protocol}
    assert {evaluation.score.n for evaluation in found} == {len(halves[1])}
    # Red and blue images are told apart by their very pixels, given more than one epoch.
    assert found[0].score.top1 == 100 or protocol == "full-linear"


def test_without_floors_only_the_encoder_is_scored(finished: Path) -> None:
    halves = labelled(str(finished / "data"))
    announced: list[str] = []
    (found,) = evaluate(str(finished / "run"), halves, settings_of("knn"), floors=False, on_start=announced.append)
    assert (found.network, announced) == ("pretrained", ["pretrained"])
    encoder = open_encoder(str(finished / "run")).to(CPU)
    train, test = (encoder_features(encoder, half, workers=0) for half in halves)
    assert found.score == knn(train, test, KnnConfig(k=3))


def test_the_random_start_of_a_run_is_its_own(finished: Path) -> None:
    run = str(finished / "run")
    trained = open_encoder(run)
    torch.rand(3)
    start = random_start(run, trained).encoder.vit.state_dict()
    expected = build_method(RunFolder(finished / "run").config()).exported().vit.state_dict()
    assert start.keys() == expected.keys()
    assert all(torch.equal(start[name], expected[name]) for name in start)
    final = load_file(finished / "run" / "encoder.safetensors")
    assert any(not torch.equal(start[name], final[name]) for name in final)


def test_the_random_start_of_a_file_has_its_shape(finished: Path) -> None:
    file = str(finished / "run" / "encoder.safetensors")
    trained = open_encoder(file)
    torch.rand(3)
    start = random_start(file, trained)
    assert start.encoder.config == trained.encoder.config
    assert (start.mean, start.std) == (trained.mean, trained.std)
    again = random_start(file, trained).encoder.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in start.encoder.state_dict().items())


def refused(spec: str, finished: Path) -> Iterator[object]:
    halves = labelled(str(finished / "data"))
    return evaluate(spec, halves, settings_of("knn"), floors=True, on_start=lambda network: None)


def test_what_is_no_encoder_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^there is no run folder or encoder file absent$"):
        next(refused("absent", finished))
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match=r"unfinished holds no encoder\.safetensors; is the run finished\?$"):
        next(refused(str(tmp_path / "unfinished"), finished))
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors is not an encoder written by unmask"):
        next(refused(str(tmp_path / "foreign.safetensors"), finished))


def score_of(top1: float, n: int) -> Score:
    return Score(top1=top1, top5=None, mean_class=top1, interval=(0, 100), mean_class_interval=(0, 100), n=n)


@pytest.mark.parametrize(
    ("better", "floor", "n", "sentence"),
    [
        (90.0, 50.0, 100, "+40.0 points against raw pixels (95 % noise of the test set: ±11.4): clearly better"),
        (50.0, 90.0, 100, "-40.0 points against raw pixels (95 % noise of the test set: ±11.4): clearly worse"),
        (60.0, 50.0, 100, "+10.0 points against raw pixels (95 % noise of the test set: ±13.7): within the noise"),
        (50.0, 60.0, 100, "-10.0 points against raw pixels (95 % noise of the test set: ±13.7): within the noise"),
        (60.0, 50.0, 10_000, "+10.0 points against raw pixels (95 % noise of the test set: ±1.4): clearly better"),
        (100.0, 100.0, 5, "+0.0 points against raw pixels (95 % noise of the test set: ±0.0): within the noise"),
    ],
)
def test_a_difference_is_weighed_against_the_size_of_the_test_set(
    better: float, floor: float, n: int, sentence: str
) -> None:
    assert compare(score_of(better, n), score_of(floor, n), "raw pixels") == sentence
