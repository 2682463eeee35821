"""Weights and other files of strangers run no code: nothing in the source could, and crafted files do nothing."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import unmask
from tiny_runs import draw_images, quick_options, tiny_config, tiny_options
from unmask.cli import main
from unmask.config import save_config
from unmask.run_folder import RunFolder
from unmask.training.checkpoint import checkpoint_path

ROOT = Path(unmask.__file__).parents[2]
FILES = sorted(path for room in ("src", "scripts", "benchmarks", "examples") for path in (ROOT / room).rglob("*.py"))
BUILT_IN = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "code"}
SHELLS = {("os", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput")}


def dotted(node: ast.expr) -> tuple[str, ...]:
    """The names of `a.b.c`; empty for anything else."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return (*before, node.attr) if before else ()
    return ()


def keyword(call: ast.Call, name: str) -> object:
    """The constant that a call gives to an argument; None where it gives none."""
    return next((ast.literal_eval(given.value) for given in call.keywords if given.arg == name), None)


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines of a source file that could run code from data, with what they do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield node.lineno, str(node.module)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if len(name) == 1 and name[0] in BUILT_IN:
                yield node.lineno, name[0]
            elif name in SHELLS:
                yield node.lineno, ".".join(name)
            elif name[-2:] == ("torch", "load") and keyword(node, "weights_only") is not True:
                yield node.lineno, "torch.load without weights_only=True"
            elif name[-2:] in (("np", "load"), ("numpy", "load")) and keyword(node, "allow_pickle") is not False:
                yield node.lineno, "numpy.load without allow_pickle=False"
            elif name[-1:] == ("from_pretrained",) and keyword(node, "trust_remote_code") is not False:
                yield node.lineno, "from_pretrained without trust_remote_code=False"
            for given in node.keywords:
                if given.arg == "shell" and ast.literal_eval(given.value):
                    yield node.lineno, "shell=True"
                if given.arg in ("trust_remote_code", "allow_pickle") and ast.literal_eval(given.value):
                    yield node.lineno, str(given.arg)


def test_no_source_can_run_code_from_data() -> None:
    assert len(FILES) > 150
    found = [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for path in FILES
        for line, what in dangers(ast.parse(path.read_text(encoding="utf8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from yaml import load",
        "import torch; torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "AutoTokenizer.from_pretrained(folder)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert list(dangers(ast.parse(line)))


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str, int], int], tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


def traps(sprung: Path) -> dict[str, bytes]:
    """A trap as people store weights: pickled bare, by torch.save in both of its formats, by numpy, within a zip."""
    content: dict[str, bytes] = {"pickle": pickle.dumps({"model": Trap(sprung)})}
    for name, zipped in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save({"model": {"blocks.input.w": torch.ones(2)}, "trap": Trap(sprung)}, buffer,
                   _use_new_zipfile_serialization=zipped)  # fmt: skip
        content[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    content["numpy"] = buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(sprung)))
        archive.writestr("../escaped.txt", "outside")
    content["foreign zip"] = buffer.getvalue()
    return content


def test_the_trap_works(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    pickle.loads(traps(sprung)["pickle"])
    assert sprung.exists()
    sprung.unlink()
    torch.load(io.BytesIO(traps(sprung)["zip"]), weights_only=False)
    assert sprung.exists()


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_crafted_files_do_nothing_wherever_weights_are_taken(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = tmp_path / "desk"
    desk.mkdir()
    monkeypatch.chdir(desk)
    sprung = tmp_path / "sprung"
    content = traps(sprung)[kind]
    draw_images(desk / "data")
    for suffix in ("pt", "pth", "safetensors"):
        (desk / f"weights.{suffix}").write_bytes(content)
    (desk / "weights.npy").write_bytes(traps(sprung)["numpy"])
    (desk / "weights.pkl").write_bytes(traps(sprung)["foreign zip"])
    # A finished run, an unfinished one, and a folder as transformers writes it, each with the trap in its place.
    config = tiny_config("mae", desk / "data")
    for name in ("run", "half"):
        RunFolder(desk / name).claim(config)
        checkpoint_path(desk / name / "checkpoints", 1).write_bytes(content)
    (desk / "run" / "encoder.safetensors").write_bytes(content)
    (desk / "run" / "classifier.safetensors").write_bytes(content)
    (desk / "text").mkdir()
    (desk / "text" / "config.json").write_text(
        json.dumps({"model_type": "roberta", "auto_map": {"AutoModel": "trap.Model", "AutoTokenizer": "trap.Model"}})
    )
    (desk / "text" / "trap.py").write_text(f"open({str(sprung)!r}, 'w')\nclass Model: pass\n")
    (desk / "text" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["trap.Model", None]}})
    )
    (desk / "text" / "pytorch_model.bin").write_bytes(content)
    (desk / "golden").mkdir()
    for suffix in ("safetensors", "safetensors.xz"):
        (desk / "golden" / f"{suffix}.json").write_text('{"method": "mae"}')
        (desk / "golden" / f"{suffix}.{suffix}").write_bytes(content)
    save_config(config, desk / "config.json")
    named = json.loads((desk / "config.json").read_text()) | {"method": "trap:Model"}
    (desk / "named.json").write_text(json.dumps(named))
    (desk / "trap.py").write_text(f"open({str(sprung)!r}, 'w')\nclass Model: pass\n")
    monkeypatch.syspath_prepend(desk)

    quick = quick_options()
    commands = [
        ["evaluate", "knn", "run", "data"],
        ["evaluate", "linear", "weights.safetensors", "data"],
        ["evaluate", "knn", "weights.pt", "data"],
        ["evaluate", "finetune", "weights.pth", "data", *quick],
        ["evaluate", "robustness", "run", "data"],
        ["compare", "run", "--on", "data", "--out", "compared", "--device", "cpu"],
        ["pretrain", "data", "--method", "tec", "--method.teacher", "weights.safetensors", *quick],
        ["pretrain", "data", "--method", "tec", "--method.teacher", "run", *quick],
        *(
            ["pretrain", "data", "--method", "beit", "--method.tokenizer", f"weights.{suffix}", *quick]
            for suffix in ("pt", "pth", "pkl", "safetensors")
        ),
        ["pretrain", "data", "--method", "igpt", "--method.palette", "weights.npy", *quick],
        ["pretrain", "data", "--method", "m3ae", "--method.text.folder", "text", *quick],
        ["pretrain", "data", *tiny_options("mae"), *quick, "--out", "half"],
        ["pretrain", "--config", "named.json", *quick],
        ["tokenizer", "train", "data", "--kind", "vqkd", "--teacher", "weights.safetensors", "--out", "t.safetensors"],
    ]
    for command in commands:
        code = main(command)
        out, err = capsys.readouterr()
        assert code == 2, (command, out, err)
        assert err.startswith("unmask: "), (command, err)
        assert len(err.splitlines()) == 1, (command, err)
        assert not sprung.exists(), command
    # What can do without the weights goes on without them.
    assert main(["report", "half"]) == 0
    assert main(["verify", "golden"]) == 1
    assert not sprung.exists()
    assert not (tmp_path / "escaped.txt").exists()
