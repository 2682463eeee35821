"""RUN where evaluations are of classifiers: a finished one, or an encoder on which one is still to be made."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from unmask.run_folder import RunFolder
from unmask.supervised.config import is_supervised
from unmask.tasks.classifier_file import HEADER, FinishedClassifier, read_classifier

CLASSIFIER_FILE = "classifier.safetensors"


def classifier_path(run: str) -> Path | None:
    """The file of the finished classifier that RUN is or holds; None where RUN is something else."""
    path = Path(run)
    if path.is_dir():
        path = path / CLASSIFIER_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return path if HEADER in (file.metadata() or {}) else None
    except (OSError, SafetensorError):
        return None


def read_single_label(path: Path, what: str) -> FinishedClassifier:
    """A finished classifier that gives an image one class. ValueError for one that gives several: `what` cannot be of
    such."""
    classifier = read_classifier(path)
    if classifier.several:
        raise ValueError(f"{path} finds several classes in an image; {what} is of classifiers that give it one")
    return classifier


def fingerprint(run: str) -> str:
    """What changes when the weights of RUN do: a checksum of its file, or the name of a network of timm's."""
    path = classifier_path(run)
    if path is None:
        path = Path(run) / "encoder.safetensors" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        return run
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def supervised_values(run: str) -> dict[str, object]:
    """What config.json of a supervised run folder holds; nothing for any other RUN."""
    folder = RunFolder(Path(run))
    if not folder.config_file.exists():
        return {}
    values = folder.values()
    return values if is_supervised(values) else {}


def network_of(run: str) -> str:
    """ "random" for a classifier that was trained from the random start, "pretrained" for all else."""
    return "random" if supervised_values(run).get("start") == "random" else "pretrained"
