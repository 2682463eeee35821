"""The benchmark of device views runs on a CPU, too, and tells what it measured."""

from __future__ import annotations

import json

import torch
from benchmarks.device_views import main, views_of
from benchmarks.trainers import Setting, make_trainer

TINY = ("--encoder", "vit_tiny_patch16_224", "--image-size", "64", "--depth", "1", "--batch-size", "2")


def test_views_differ_from_call_to_call_in_seed_alone():
    setting = Setting(method="conmim", encoder="vit_tiny_patch16_224", image_size=64, batch=2, depth=1)
    trainer, batch = make_trainer(setting, torch.device("cpu"))
    seeds = []
    trainer.trainee.make_views = lambda given: seeds.append(given.seed)
    make = views_of(trainer.trainee, batch)
    make()
    make()
    assert seeds == [1, 2]


def test_a_row_for_each_method_and_no_gpu_figures_on_a_cpu(tmp_path):
    out = tmp_path / "views.json"
    main(["--methods", "conmim", "mae", *TINY, "--rounds", "1", "--device", "cpu", "--out", str(out)])
    result = json.loads(out.read_text())
    (table,) = result["tables"]
    assert [row[0] for row in table["rows"]] == ["conmim", "mae"]
    for _, views, step, share, launch, waits in table["rows"]:
        assert views > 0
        assert step > 0
        assert share > 0
        assert launch is None
        assert waits is None
    assert result["facts"]["device"] == "cpu"
