"""An export is there as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.errors import Failure
from unmask.interop.weights_out.compare import check, difference, real_images
from unmask.interop.weights_out.export import WantedExport, export
from unmask.interop.weights_out.graph import Graph
from unmask.models.pretrained import PretrainedEncoder

Tiny = Callable[[str], PretrainedEncoder]


def test_an_encoder_that_is_not_finite_is_refused_and_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    pretrained = tiny("plain")
    with torch.no_grad():
        pretrained.encoder.network.get_parameter("norm.weight")[3] = torch.nan
    with pytest.raises(Failure, match="tokens: the encoder's features are not finite"):
        export(pretrained, WantedExport(to="timm", out=tmp_path / "new" / "out"), str)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_above_the_tolerance_is_refused_and_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """transformers adds in another order, which is far below what matters, but not below everything."""
    wanted = WantedExport(to="transformers", out=tmp_path / "new" / "out", tolerance=1e-12)
    with pytest.raises(Failure, match=r"the export is refused: tokens differ by \S+, which is \S+ of the largest"):
        export(tiny("plain"), wanted, str)
    assert list(tmp_path.iterdir()) == []


def test_a_card_that_fails_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    def card(_: object) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny("plain"), WantedExport(to="safetensors", out=tmp_path / "out"), card)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tolerance": 0.0}, "--tolerance must lie between 0 and 1"),
        ({"graph": Graph(output="class")}, "are for onnx and torch-export, not timm"),
        ({"out": Path("/")}, "exists"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], sentence: str, tiny: Tiny, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"to": "timm", "out": tmp_path / "out"}
    with pytest.raises(ValueError, match=sentence):
        export(tiny("plain"), WantedExport(**usual | changes), str)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists"):
        export(tiny("plain"), WantedExport(to="timm", out=tmp_path / "out"), str)
    assert list((tmp_path / "out").iterdir()) == []


def test_differences_are_measured() -> None:
    ours = torch.tensor([[1.0, -4.0]])
    found = difference("tokens", torch.tensor([[1.0, -4.5]]), ours)
    assert (found.absolute, found.relative) == (0.5, 0.125)
    check([found], 0.125)
    with pytest.raises(Failure, match=r"tokens differ by 0\.5, which is 0\.125 of the largest"):
        check([found], 0.1)
    with pytest.raises(Failure, match="not finite"):
        difference("tokens", torch.tensor([[1.0, torch.inf]]), ours)
    with pytest.raises(Failure, match="shape"):
        difference("tokens", ours[:, :1], ours)


def test_images_are_real_and_differ(tiny: Tiny) -> None:
    encoder = tiny("four channels").encoder
    images_BCHW = real_images(encoder, None, 4)
    assert images_BCHW.shape == (4, 4, 32, 32)
    assert images_BCHW.dtype == torch.uint8
    assert torch.equal(images_BCHW[:, 3], images_BCHW[:, 0])
    assert len(images_BCHW.flatten(1).unique(dim=0)) == 4
    assert real_images(tiny("one channel").encoder, None, 2).shape == (2, 1, 32, 32)
