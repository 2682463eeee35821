"""`unmask export`, from the file of a run to a folder on a hub (one on this machine)."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from unmask.cli import main
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import encoder_file, open_encoder
from unmask.training.checkpoint import write_atomically


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub of Hugging Face does to those who make a repository and commit files to it."""

    requests: dict[str, bytes]
    endpoint: str

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.requests[path] = body
        answer: dict[str, object] = {"url": f"{self.endpoint}/me/tiny", "errors": [], "warnings": []}
        if "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]}
        if "/commit/" in path:
            answer = {"success": True, "commitUrl": f"{self.endpoint}/me/tiny/commit/1", "commitOid": "1" * 40}
        self.answer(answer)

    def do_GET(self) -> None:
        self.answer({"id": "me/tiny", "modelId": "me/tiny", "sha": "0" * 40, "siblings": []})

    def answer(self, value: dict[str, object]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[type[Hub]]:
    class Own(Hub):
        pass

    Own.requests = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        Own.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield Own
        server.shutdown()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the encoder of a tiny ViT, in which commands run."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", patch_size=8, width=32, depth=1, heads=2, image_height=32, image_width=32
    )
    facts = {"method": "mae", "version": "0.0.1", "data": "photos"}
    tensors, metadata = encoder_file(
        build_encoder(config, mask_token=False), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3), facts=facts
    )
    write_atomically(tmp_path / "encoder.safetensors", tensors, metadata)
    return tmp_path


def test_a_folder_is_written_and_pushed(desk: Path, hub: type[Hub]) -> None:
    """As a process of its own, as people start it."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": "hf_nobody",
        "HF_HOME": str(desk / "home"),
        "HF_HUB_OFFLINE": "0",
    }
    options = ["--to=timm", "--out=new/out", "--push=me/tiny", "--json"]
    command = [sys.executable, "-m", "unmask", "export", "encoder.safetensors", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["pushed"] == f"{hub.endpoint}/me/tiny"
    assert {one["what"] for one in said["differences"]} == {"tokens", "means of patches"}
    card = Path("new/out/README.md").read_text()
    assert "| data | photos |" in card
    assert json.loads(hub.requests["/api/repos/create"])["visibility"] == "private"
    lines = [json.loads(line) for line in hub.requests["/api/models/me/tiny/commit/main"].splitlines()]
    sent = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    assert {name: base64.b64decode(content) for name, content in sent.items()} == {
        path.name: path.read_bytes() for path in Path("new/out").iterdir()
    }


def test_a_hub_that_is_out_of_reach_is_one_sentence_and_the_folder_stays(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["export", "encoder.safetensors", "--to", "safetensors", "-o", "out", "--push", "me/tiny"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("unmask: could not push to me/tiny (")
    assert "hf upload me/tiny out tries again" in error
    assert error.count("\n") == 1
    assert {path.name for path in Path("out").iterdir()} == {"README.md", "encoder.safetensors"}


def test_our_own_file_keeps_what_its_header_says(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "encoder.safetensors", "--to", "safetensors", "-o", "copy.safetensors"]) == 0
    assert "written       copy.safetensors" in capsys.readouterr().out
    assert open_encoder("copy.safetensors").method == "mae"
    assert Path("copy.safetensors").read_bytes() == Path("encoder.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--to", "tmm"], "--to cannot be 'tmm'"),
        (["--to", "timm", "--license", "my own"], "--license takes a short name"),
        (["--to", "timm", "--push", "tiny"], "--push takes OWNER/NAME, not 'tiny'"),
        (["--to", "timm", "--push", "../tiny"], "--push takes OWNER/NAME"),
        (["--to", "timm", "--public"], "--public is for --push"),
        (["--to", "timm", "--dynamic-size"], "are for onnx and torch-export, not timm"),
        (["--to", "timm", "--data", "nowhere"], "nowhere"),
        (["--to", "onnx", "--out", "new/a.onnx", "--push", "me/tiny"], "--push uploads a folder"),
        (["--to", "timm", "--out", "encoder.safetensors"], "encoder.safetensors exists"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_nothing(
    options: list[str], sentence: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(desk.rglob("*"))
    out = [] if "--out" in options else ["--out", "new/out"]
    assert main(["export", "encoder.safetensors", *out, *options]) == 2
    said, error = capsys.readouterr()
    assert said == ""
    assert sentence in error
    assert error.count("\n") == 1
    assert sorted(desk.rglob("*")) == before


def test_a_tolerance_that_nothing_meets_is_a_failed_check(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(desk.rglob("*"))
    options = ["--to", "transformers", "-o", "new/out", "--tolerance", "1e-15"]
    assert main(["export", "encoder.safetensors", *options]) == 1
    assert "the export is refused: tokens differ by" in capsys.readouterr().err
    assert sorted(desk.rglob("*")) == before
