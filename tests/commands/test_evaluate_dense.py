"""`unmask evaluate segment` and `detect` on real photos with masks and boxes, as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from tiny_runs import CommandProcess, draw_images
from tiny_supervised import write_encoder
from unmask.cli import main
from unmask.data.decode import open_image
from unmask.tasks.detection_file import read_detector
from unmask.tasks.segmentation_file import read_segmenter

COINS = Path(__file__).parents[1] / "data_files" / "coins"
TREES = Path(__file__).parents[1] / "data_files" / "trees"
QUICK = [
    part
    for name, value in {"epochs": 2, "batch-size": 2, "workers": 0, "log-every": 1, "device": "cpu"}.items()
    for part in (f"--{name}", str(value))
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A desk with a tiny encoder."""
    monkeypatch.chdir(tmp_path)
    write_encoder(tmp_path / "bare.safetensors")
    return tmp_path


def photo(path: Path) -> torch.Tensor:
    decoded = open_image(path.read_bytes()).decode(min_size=None, channels=3)
    return torch.from_numpy(decoded.pixels_HWC).permute(2, 0, 1)


def test_segment_leaves_a_segmenter_a_page_and_a_table(here: Path) -> None:
    """A real process, and the same again, which trains nothing."""
    arguments = ["evaluate", "segment", "bare.safetensors", str(COINS), *QUICK, "--floors", "--out", "coins"]
    ended = CommandProcess(arguments, here).end()
    assert ended.code == 0, ended.err
    assert ended.err == ""
    lines = ended.out.splitlines()
    assert any(re.fullmatch(r"pre-trained +\d+\.\d +\d+\.\d to \d+\.\d", line) for line in lines)
    assert any(re.fullmatch(r"random start +\d+\.\d +\d+\.\d to \d+\.\d", line) for line in lines)
    assert any(line.startswith("pre-trained ") and "points against random start" in line for line in lines)
    assert any(re.fullmatch(r"pixels right \d+\.\d %, mean of classes \d+\.\d %", line) for line in lines)
    for name in ("background", "coin"):
        assert any(re.match(rf"{name} +\d+\.\d", line) for line in lines)
    page = (here / "coins" / "report.html").read_text(encoding="utf-8")
    assert "Test images and their pixels" in page
    assert page.count("<img ") >= 8
    segmenter = read_segmenter(here / "coins" / "segmenter.safetensors")
    (predicted,) = segmenter.predict([photo(COINS / "val" / "images" / "upper.jpg")])
    assert set(predicted.unique().tolist()) <= {0, 1}

    records = [json.loads(line) for line in next((here / "runs").rglob("log.jsonl")).read_text().splitlines()]
    assert [(record["name"], record["network"]) for record in records] == [
        ("segment", "random"),
        ("segment", "pretrained"),
    ]
    assert {row["name"] for row in records[1]["score"]["classes"]} == {"background", "coin"}
    weights = (here / "coins" / "segmenter.safetensors").read_bytes()
    again = CommandProcess(arguments, here).end()
    assert again.code == 0
    assert "step " not in again.out
    assert (here / "coins" / "segmenter.safetensors").read_bytes() == weights


def test_detect_leaves_a_detector_and_every_precision(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "detect", "bare.safetensors", str(TREES), *QUICK, "--image-size", "64", "--out", "trees"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^ +AP +AP50 +AP75 +small +medium +large +AR$", out, flags=re.M)
    assert re.search(r"^boxes( +(\d+\.\d|-)){7}$", out, flags=re.M)
    assert not re.search(r"^masks", out, flags=re.M), "trees have no outlines"
    assert "what is found in them" in (here / "trees" / "report.html").read_text(encoding="utf-8")
    detector = read_detector(here / "trees" / "detector.safetensors")
    assert detector.classes == ("tree",)
    (found,) = detector.predict([photo(TREES / "val" / "upper.jpg")])
    assert found.boxes_K4.shape[1] == 4
    # The page can be written anew by its own command.
    (here / "trees" / "report.html").unlink()
    assert main(["report", "trees"]) == 0
    assert (here / "trees" / "report.html").exists()


def test_results_as_json_are_a_line_each(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "segment", "bare.safetensors", str(COINS), *QUICK, "--json", "--out", "coins"]) == 0
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (record["name"], record["run"], record["data"]) == ("segment", "bare.safetensors", str(COINS))
    assert record["settings"]["settings"]["layer_decay"] == 0.65
    assert 0 <= record["score"]["mean_iou"] <= 100


def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_images(here / "photos")
    odd = here / "odd"
    for half in ("train", "val"):
        for kind in ("images", "masks"):
            (odd / half / kind).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(odd / half / "images" / "a.png")
        Image.new("L", (16, 16)).save(odd / half / "masks" / "a.png")
    (odd / "classes.txt").write_text("ground\nsky\n")
    boxes = here / "boxes"
    for half in ("train", "val"):
        (boxes / half).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(boxes / half / "a.png")
        things = {
            "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 32}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [20, 20, 30, 5], "iscrowd": 0}],
        }
        (boxes / half / "annotations.json").write_text(json.dumps(things))
    cases = {
        ("segment", "photos"): "mask",
        ("segment", "odd"): "its mask has 16 x 16 pixels, the image 32 x 32",
        ("detect", "photos"): "annotations",
        ("detect", "boxes"): "annotation 7",
        ("segment", "absent"): "absent",
    }
    before = sorted(path for path in here.rglob("*"))
    for (protocol, data), words in cases.items():
        assert main(["evaluate", protocol, "bare.safetensors", data, *QUICK]) == 2, (protocol, data)
        out, err = capsys.readouterr()
        assert err.count("\n") == 1
        assert words in err, err
        assert "Traceback" not in out + err
    assert main(["evaluate", "segment", "bare.safetensors", str(COINS), *QUICK, "--image-size", "30"]) == 2
    assert "not divisible by the patch size" in capsys.readouterr().err
    assert sorted(path for path in here.rglob("*")) == before
