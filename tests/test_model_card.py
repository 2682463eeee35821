"""The README.md of an export: everything a reader must know, and nothing a run could smuggle in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.interop.weights_out.compare import Difference
from unmask.interop.weights_out.export import WantedExport
from unmask.interop.weights_out.graph import Graph
from unmask.model_card import Origin, check_licence, model_card, origin_of, plain
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder
from unmask.run_folder import RunFolder

TEXTS = ["a|b", "<script>x</script>", "[a](b)\n# c", "`x` *y* __z__", "&lt; \\ ~~q~~", "![i](u)"]
INSIDE = Graph(normalise="uint8", output="class")
DIFFERENCES = [Difference(what="tokens", absolute=1.5e-6, relative=3e-7)]


@pytest.fixture
def pretrained() -> PretrainedEncoder:
    config = EncoderConfig(name="vit_tiny_patch16_224", width=32, depth=1, heads=2, image_height=32, image_width=32)
    encoder = build_encoder(config, mask_token=False)
    return PretrainedEncoder(encoder=encoder, mean=(0.5,) * 3, std=(0.25,) * 3, origin="x", method="mae")


def evaluation(network: str, top1: float, data: str, name: str = "knn") -> dict[str, object]:
    score = {"top1": top1, "interval": [top1 - 1, top1 + 1], "n": 9}
    return {"kind": "evaluation", "epoch": 1, "name": name, "network": network, "score": score, "data": data}


def test_a_card_says_what_a_run_knows(pretrained: PretrainedEncoder, tmp_path: Path) -> None:
    training = {"epochs": 3, "batch_size": 8, "seed": 7}
    config = {"format": 1, "data": "/home/me/my photos", "method": "mae", "settings": {}, "training": training}
    (tmp_path / "config.json").write_text(json.dumps(config))
    records = [
        {"kind": "step", "step": 40, "epoch": 2},
        evaluation("random", 10.0, "/home/me/my photos"),
        evaluation("pretrained", 50.0, "/home/me/my photos"),
        evaluation("pretrained", 62.5, "/home/me/my photos"),
        {"kind": "evaluation", "epoch": 1, "name": "fewshot", "network": "pretrained", "score": {"odd": 1}},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "st')
    origin = origin_of(pretrained, {"version": "0.0.9", "data": "elsewhere"}, RunFolder(tmp_path))
    card = model_card(pretrained, WantedExport(to="timm", out=tmp_path), origin, "cc-by-4.0", DIFFERENCES)
    for words in (
        "license: cc-by-4.0",
        "library_name: timm",
        "| data | my photos |",
        "| images seen | 320 |",
        "| epochs | 3 |",
        "| trained by unmask | 0.0.9 |",
        "| mean | 0.5, 0.5, 0.5 |",
        "| 62.5 |",
        "timm.create_model(",
        '"seed": 7',
        "3e-07 of the largest",
    ):
        assert words in card
    for words in ("/home/me", "50.0", "10.0"):
        assert words not in card


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_a_run_is_shown_letter_by_letter(text: str, pretrained: PretrainedEncoder, tmp_path: Path) -> None:
    origin = Origin(facts={"method": text, "data": text}, evaluations=(evaluation(text, 5.0, text, text),))
    card = model_card(pretrained, WantedExport(to="transformers", out=tmp_path), origin, "other", DIFFERENCES)
    shown = plain(text)
    assert "\n" not in shown
    assert f"| data | {shown} |" in card
    assert f"# Encoder pre-trained by {shown}\n" in card
    assert f"on {shown}." in card
    assert "<script" not in card
    assert "](" not in card.replace(r"\](", "")


def test_configuration_stays_code(pretrained: PretrainedEncoder, tmp_path: Path) -> None:
    origin = Origin(facts={}, settings={"data": "x\n```\n# title <b>"})
    card = model_card(pretrained, WantedExport(to="timm", out=tmp_path), origin, "other", DIFFERENCES)
    after = card.split("The run's `config.json`:")[1].strip("\n")
    assert all(line.startswith("    ") for line in after.split("\n"))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (WantedExport(to="onnx", out=Path("o"), graph=INSIDE), "Images are bytes; the output is the class"),
        (WantedExport(to="torch-export", out=Path("o")), "torch.export.load("),
        (WantedExport(to="safetensors", out=Path("o")), "unmask.open_encoder("),
        (WantedExport(to="transformers", out=Path("o")), "tokens[:, 1:].mean(dim=1)"),
    ],
)
def test_every_format_says_how_to_load_it(wanted: WantedExport, words: str, pretrained: PretrainedEncoder) -> None:
    card = model_card(pretrained, wanted, origin_of(pretrained, {}, None), "other", DIFFERENCES)
    assert words in card
    assert "None were measured" in card


@pytest.mark.parametrize("name", ["", "mit\nx: y", "my licence", "[a]"])
def test_a_licence_is_a_short_name(name: str) -> None:
    check_licence("apache-2.0")
    with pytest.raises(ValueError, match="--license takes a short name"):
        check_licence(name)
