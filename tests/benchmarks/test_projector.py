"""The benchmark of ConMIM's projector: the forms are what they say, share their start, and cost less and less."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.projector import AUTHORS, FORMS, PLAIN, RANDOM, Form, run_config, small_vit, speed

from benchmarks import projector
from tiny_runs import draw_images
from unmask.config import RunConfig
from unmask.methods.conmim import ConMIMConfig
from unmask.pretrain import build_method


def tiny() -> ConMIMConfig:
    config = small_vit().for_images(32, 32)
    assert isinstance(config, ConMIMConfig)
    return replace(
        config,
        encoder=replace(config.encoder, patch_size=8, width=48, depth=2, heads=3),
        projector=replace(config.projector, hidden=64, out=32),
    )


def test_the_first_form_is_the_default() -> None:
    assert PLAIN.of(ConMIMConfig()) == ConMIMConfig()
    assert PLAIN.options(ConMIMConfig()) == "none"
    config = Form("all", needed=True, query_share=0.5, narrower=4).of(ConMIMConfig())
    assert (config.projected, config.query_share, config.projector.hidden) == ("needed", 0.5, 1024)
    form = Form("all", needed=True, query_share=0.5, narrower=4)
    assert form.options(ConMIMConfig()) == "projected=needed, query-share=0.5, projector.hidden=1024"


def test_ours_without_options_agrees_with_the_authors_and_forms_cost_less_and_less() -> None:
    result = speed(tiny(), batch_size=4, rounds=2)
    assert list(result.timings) == [AUTHORS, *(form.name for form in FORMS)]
    # Also the round that warms up; the losses fall, so they were steps.
    assert result.losses[PLAIN.name] == pytest.approx(result.losses[AUTHORS], abs=1e-5)
    assert all(len(losses) == 3 and losses[-1] != losses[0] for losses in result.losses.values())
    everything, needed, fewer, narrow, all_three = (result.gflop[form.name] for form in FORMS)
    assert everything > needed > fewer > all_three
    assert everything > narrow > all_three


def test_runs_of_a_seed_start_from_the_same_encoder() -> None:
    starts = [build_method(run_config(form, epochs=1, seed=3)).exported().state_dict() for form in FORMS]
    for start in starts[1:]:
        assert all(torch.equal(start[name], value) for name, value in starts[0].items())


def test_the_whole_benchmark_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    for half in ("train", "val"):
        draw_images(data / half, 32)

    def small(form: Form, *, epochs: float, seed: int) -> RunConfig:
        run = run_config(form, epochs=epochs, seed=seed, width=32, depth=1)
        return replace(run, data=str(data), training=replace(run.training, batch_size=8))

    monkeypatch.setattr(projector, "small_vit", tiny)
    monkeypatch.setattr(projector, "run_config", small)
    out = tmp_path / "projector.json"
    options = ["--batch-size", "2", "--rounds", "1", "--epochs", "0.5", "--seeds", "1", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["projector", *options])
    projector.main()
    result = json.loads(out.read_text())
    names = [form.name for form in FORMS]
    assert [[row[0] for row in table["rows"]] for table in result["tables"]] == [[AUTHORS, *names], [RANDOM, *names]]
    for scores in result["raw"]["linear"].values():
        # The same seed gives the same scores.
        assert scores[0] == scores[1]
    zero = next(row for row in result["tables"][1]["rows"] if row[0] == PLAIN.name)
    assert zero[-1] == "+0.00, +0.00"
