"""A run folder of somebody else: its log, whatever stands there, is a page; golden cases are verdicts."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from fuzzing import altered, altered_lines, altered_safetensors, altered_text, answer, damaged
from unmask.interop.golden import MOST_BYTES, Verdict, load_tensors, tensor_file, verify
from unmask.report import (
    Page,
    accuracies,
    evaluation_table,
    health_table,
    learning_charts,
    left_out_table,
    read_log,
    render_page,
    run_facts,
    run_warnings,
)
from unmask.run_folder import RunFolder

Fuzz = Callable[..., None]
GOLDEN = Path(__file__).parents[1] / "golden"


def records() -> list[dict[str, Any]]:
    score = {"top1": 50.0, "top5": None, "mean_class": 49.0, "interval": [45.0, 55.0], "n": 500}
    made: list[dict[str, Any]] = []
    for step in range(4):
        made += [
            {
                "kind": "step",
                "step": step,
                "epoch": step / 2,
                "time": 3.0 * step,
                "loss": 5.0 - step,
                "losses": {"contrast": 4.0 - step, "reconstruction": 1.0},
                "lr": 1e-3,
                "grad_norm": 1.0,
                "images_per_second": 100.0,
            },
            {
                "kind": "health",
                "step": step,
                "epoch": step / 2,
                "figures": {"feature_std": 0.1, "effective_rank": 4.0 + step, "positive_similarity": 0.5},
                "warnings": ["narrow"] if step else [],
            },
            {
                "kind": "evaluation",
                "step": step,
                "epoch": step / 2,
                "name": "knn",
                "network": "pretrained" if step else "random",
                "score": score,
            },
        ]
    made += [
        {"kind": "left out", "step": 2, "number": 2, "reason": "loss 'contrast' is nan, samples 4, 1"},
        {"kind": "spike", "step": 3, "loss": 9.0, "warning": "the loss jumped"},
    ]
    return made


def test_logs(fuzz: Fuzz, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def page() -> None:
        step, epoch = folder.last_step()
        found = read_log(folder.log_file)
        made = Page(
            run="run",
            method="method",
            idea="idea",
            encoder="encoder",
            data="data",
            verdict="",
            accuracies=accuracies(found),
            facts=run_facts(found, step),
            warnings=run_warnings(found),
            charts=learning_charts(found),
            tables=(evaluation_table(found), health_table(found), left_out_table(found)),
            config={"epoch": epoch},
            versions={},
        )
        folder.write_report(render_page(made))
        folder.forget_after(1)

    def check(content: bytes) -> None:
        folder.log_file.write_bytes(content)
        # A log is never refused: the page says which of its lines are damaged.
        answer(page)

    fuzz(altered_lines(records()), check, examples=40)


def test_bad_files_and_configurations_on_a_page(fuzz: Fuzz, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def check(content: bytes) -> None:
        folder.config_file.write_bytes(content)
        answer(folder.values, ValueError)

    fuzz(altered_text({"format": 1, "protocol": "finetune", "settings": {"rates": [1, 2]}}), check)


def case_of(name: str) -> tuple[dict[str, Any], bytes]:
    path = GOLDEN / f"{name}.json"
    case: dict[str, Any] = json.loads(path.read_text())
    return case, save({key: value.contiguous() for key, value in load_tensors(tensor_file(path)).items()})


def judged(path: Path) -> None:
    verdict = verify(path)
    assert isinstance(verdict, Verdict)
    assert verdict.agrees or verdict.reason


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_golden_cases(fuzz: Fuzz, tmp_path: Path, name: str) -> None:
    case, content = case_of(name)
    path = tmp_path / "case.json"
    tensor_file(path).write_bytes(content)

    def check(text: bytes) -> None:
        path.write_bytes(text)
        answer(lambda: judged(path))

    shallow = altered({key: value for key, value in case.items() if "norms" not in key}).map(
        lambda values: json.dumps(case | values if isinstance(values, dict) else values).encode()
    )
    fuzz(shallow | altered_text(case), check, examples=8)


def test_tensors_of_golden_cases(fuzz: Fuzz, tmp_path: Path) -> None:
    case, content = case_of("mae")
    path = tmp_path / "case.json"
    path.write_text(json.dumps(case))
    packed = tmp_path / "case.safetensors.xz"

    def check(damage: bytes) -> None:
        packed.write_bytes(damage)
        answer(lambda: judged(path))

    small = save({"losses": torch.ones(3), "init.norm.bias": torch.ones(4)}, {"case": "{}"})
    changed = altered_safetensors(small, "case").map(lambda made: lzma.compress(made, preset=0))
    fuzz(changed | damaged({"xz": lzma.compress(content, preset=0)}), check, examples=10)


def test_a_packed_case_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_BYTES <= 1 << 30
    monkeypatch.setattr("unmask.interop.golden.MOST_BYTES", 1 << 20)
    (tmp_path / "case.json").write_text("{}")
    (tmp_path / "case.safetensors.xz").write_bytes(lzma.compress(bytes(1 << 22)))
    verdict = verify(tmp_path / "case.json")
    assert verdict.reason == "unreadable: it holds more than the 1048576 bytes allowed in a packed file"
