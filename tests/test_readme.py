"""What the README says works: its Python blocks run, its commands and options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from unmask.cli import COMMANDS, main
from unmask.commands.bench import WHAT
from unmask.commands.evaluate import PROTOCOLS
from unmask.methods import METHODS
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import encoder_file
from unmask.training.checkpoint import write_atomically

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
# `unmask submit OPTIONS -- COMMAND OPTIONS` are two.
COMMAND_LINES = re.findall(r"^(?:- )?`?unmask ([a-z]+)(.*?)`?$", README.replace(" -- ", "\nunmask "), flags=re.M)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", image_height=32, image_width=32, patch_size=8, width=32, depth=1, heads=2
    )
    encoder = build_encoder(config, mask_token=False)
    tensors, metadata = encoder_file(encoder, mean=(0.5,) * 3, std=(0.5,) * 3, facts={})
    write_atomically(tmp_path / "encoder.safetensors", tensors, metadata)

    assert len(BLOCKS) == 2
    loaded: dict[str, object] = {}
    exec(BLOCKS[0], loaded)
    model = loaded["model"]
    assert isinstance(model, torch.nn.Module)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), encoder.eval().pool(encoder(images)))

    trained: dict[str, object] = {}
    exec(BLOCKS[1], trained)
    losses = trained["losses"]
    assert isinstance(losses, dict)
    assert all(torch.isfinite(loss) for loss in losses.values())


def words_of(command: str, rest: str) -> list[str]:
    """What names the command whose help tells the options: an evaluation's protocol belongs to it, and what a
    benchmark measures."""
    second = rest.split()[:1]
    parts = {"evaluate": PROTOCOLS, "bench": WHAT}
    return [command, *second] if command in parts and second[0] in parts[command] else [command]


def test_commands_and_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMAND_LINES) >= 5
    for command, rest in COMMAND_LINES:
        assert command in COMMANDS
        with pytest.raises(SystemExit):
            main([*words_of(command, rest), "--help"])
        text = capsys.readouterr().out
        assert all(option in text for option in re.findall(r"--[a-z-]+", rest)), (command, rest)


def test_every_protocol_has_its_row() -> None:
    for name in PROTOCOLS:
        assert f"`{name}`" in README


def test_every_method_has_its_row() -> None:
    for name in METHODS:
        assert f"| `{name}` |" in README
