"""README.md of an exported encoder: what it is, where it comes from, what it scored, how to load it.

Everything that comes from a run or from the user is shown letter by letter: no text of theirs can be Markdown or HTML.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmask import __version__
from unmask.errors import in_short
from unmask.interop.weights_out.compare import Difference
from unmask.interop.weights_out.export import FILES, WantedExport
from unmask.interop.weights_out.graph import INPUT, OUTPUT
from unmask.models.convolutional import ConvEncoder
from unmask.models.pretrained import PretrainedEncoder
from unmask.report.log import Record, of_kind, read_log
from unmask.report.results import markdown_table, rows_of
from unmask.report.text import count
from unmask.run_folder import RunFolder
from unmask.tasks.classifier_file import FinishedClassifier

LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
TIMM, TRANSFORMERS = "timm", "transformers"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an encoder comes from, as far as it is known: names and values in words, evaluations as in the log."""

    facts: dict[str, str]
    evaluations: tuple[Record, ...] = ()
    settings: dict[str, Any] | None = None
    """The run's config.json."""


def origin_of(pretrained: PretrainedEncoder, header: dict[str, Any], run: RunFolder | None) -> Origin:
    """What the header of the encoder's file and its run's folder (None: there is none) say."""
    data = _without_folders(header.get("data"))
    facts = {"method": pretrained.method, "data": data, "trained by unmask": header.get("version")}
    imported = header.get("imported")
    if isinstance(imported, dict):
        facts |= {"imported from": f"{imported.get('file')} ({imported.get('from')})"}
    elif not header:
        facts |= {"weights": pretrained.origin}
    if run is None:
        return Origin(facts=_words(facts))
    settings = run.values()
    training = settings.get("training")
    training = training if isinstance(training, dict) else {}
    records = read_log(run.log_file) if run.log_file.is_file() else []
    steps = of_kind(records, "step")
    batch = training.get("batch_size")
    if steps and isinstance(batch, int):
        facts["images seen"] = count(int(steps[-1]["step"]) * batch)
    settings = _without_folders(settings)
    facts |= {
        "data": settings.get("data", facts["data"]),
        "epochs": training.get("epochs"),
        "batch": batch,
        "seed": training.get("seed"),
    }
    made = [record for record in records if record.get("kind") == "evaluation" and record.get("network") != "random"]
    latest = {(record["name"], record["network"], str(record.get("data"))): record for record in made}
    return Origin(facts=_words(facts), evaluations=tuple(latest.values()), settings=settings)


def _without_folders(value: Any) -> Any:
    """The same values with the last name alone of every absolute path: a card is public, a home folder is not."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _words(facts: dict[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else in_short(value) for name, value in facts.items() if value is not None
    }


def check_licence(name: str) -> None:
    """ValueError where `name` cannot be the hub's short name of a licence."""
    if not LICENCE.fullmatch(name):
        raise ValueError(f"--license takes a short name such as apache-2.0, mit or cc-by-4.0, not {name!r}")


def plain(text: str) -> str:
    """The text as one line of Markdown that shows its very letters, in a table too."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]~|])", r"\\\1", html.escape(flat, quote=False))


def model_card(
    pretrained: PretrainedEncoder, wanted: WantedExport, origin: Origin, licence: str, differences: Sequence[Difference]
) -> str:
    """The whole README.md."""
    encoder = pretrained.encoder
    height, width = encoder.image_size
    channels = encoder.config.channels
    about = {
        "encoder": str(encoder.config),
        "feature": f"{encoder.width} numbers an image",
        "images": f"{height}x{width} pixels, {channels} channel{'s' if channels > 1 else ''}",
        **_range(pretrained),
        "mean": _numbers(pretrained.mean),
        "standard deviation": _numbers(pretrained.std),
        **origin.facts,
        "exported by": f"unmask {__version__}, as {wanted.to}",
    }
    title = f"Encoder pre-trained by {origin.facts.get('method', 'others')}"
    parts = [
        _front(wanted, licence),
        f"# {plain(title)}",
        "A vision encoder: images in, features out. It has no classifier.",
        _table(about),
        "Mean and deviation are those of values in [0, 1], channel by channel.",
        "## How to load it",
        *_how(pretrained, wanted),
        "## Scores",
        _scores(origin.evaluations),
        "## Exactness",
        "Loaded again by the library that it is for, it gave the same features for real images as before:",
        _exactness(differences),
    ]
    if origin.settings is not None:
        parts += ["## Configuration", "The run's `config.json`:", _indented(json.dumps(origin.settings, indent=2))]
    return "\n\n".join(parts) + "\n"


def classifier_card(
    classifier: FinishedClassifier,
    wanted: WantedExport,
    facts: dict[str, Any],
    licence: str,
    differences: Sequence[Difference],
) -> str:
    """The whole README.md of an exported classifier; `facts` are those of its file's header."""
    height, width = classifier.image_size
    shown = {name.replace("_", " "): _without_folders(value) for name, value in facts.items()}
    about = {
        "encoder": str(classifier.classifier.encoder.config),
        "classes": ", ".join(classifier.classes),
        "images": f"{height}x{width} pixels, {count(classifier.channels)} channels",
        "mean": _numbers(classifier.mean),
        "standard deviation": _numbers(classifier.std),
        **_words(shown),
        "exported by": f"unmask {__version__}, as {wanted.to}",
    }
    several = " An image may have several of them." if classifier.several else ""
    parts = [
        _front(wanted, licence, "image-classification"),
        "# Image classifier",
        f"An image in, the probability of each of {len(classifier.classes)} classes out.{several}",
        _table(about),
        "## How to load it",
        _indented(_LOAD_CLASSIFIER[wanted.to]),
        "## Exactness",
        "Loaded again by the library that it is for, it gave the same answers to the same crops of real images. "
        "Where a margin is cut off, its own crop lies up to a pixel away from ours.",
        _exactness(differences),
    ]
    return "\n\n".join(parts) + "\n"


_LOAD_CLASSIFIER = {
    "timm": (
        "import timm\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        "logits = model(transform(image)[None])  # of model.pretrained_cfg['label_names']"
    ),
    "transformers": (
        "from transformers import pipeline\n\n"
        'classify = pipeline("image-classification", model="FOLDER")\n'
        'classify("image.jpg")'
    ),
}


def _exactness(differences: Sequence[Difference]) -> str:
    return _table(
        {found.what: f"{found.absolute:.2g} at most, {found.relative:.2g} of the largest" for found in differences}
    )


def _front(wanted: WantedExport, licence: str, task: str = "image-feature-extraction") -> str:
    """What the hub reads, by its own library."""
    from huggingface_hub import ModelCardData

    library = {"timm": TIMM, "transformers": TRANSFORMERS, "onnx": "onnx", "torch-export": "pytorch"}
    data = ModelCardData(
        license=licence,
        library_name=library.get(wanted.to, "unmask"),
        pipeline_tag=task,
        tags=["unmask", "self-supervised"],
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _range(pretrained: PretrainedEncoder) -> dict[str, str]:
    """What the user of an export must do with images of more than 8 bits; nothing for others."""
    found = pretrained.pixel_range
    if found is None:
        return {}
    ends = f"{_numbers(found.low)} become 0, {_numbers(found.high)} become 255"
    several = " of the channels" if len(found.low) > 1 else ""
    return {"values of the image files": f"the values {ends}{several}, linear and clipped, before all else"}


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _table(rows: dict[str, str]) -> str:
    lines = ["| | |", "| --- | --- |", *(f"| {plain(name)} | {plain(value)} |" for name, value in rows.items())]
    return "\n".join(lines)


def _indented(text: str) -> str:
    """Code by its margin: no text within can end it."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _scores(evaluations: Sequence[Record]) -> str:
    rows = []
    for record in evaluations:
        try:
            rows += rows_of(record)
        # A log of others may lack anything in a score.
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            continue
    if not rows:
        return "None were measured before the export."
    # `markdown_table` keeps bars within their cells itself.
    cells = [
        replace(row, **{name: plain(value).replace(r"\|", "|") for name, value in vars(row).items()}) for row in rows
    ]
    data = sorted({str(_without_folders(record.get("data", "?"))) for record in evaluations})
    return markdown_table(cells) + f"\nMeasured by `unmask evaluate` on {plain(', '.join(data))}."


def _how(pretrained: PretrainedEncoder, wanted: WantedExport) -> list[str]:
    """Code that loads it, in the reader's own folder."""
    encoder = pretrained.encoder
    if wanted.to == "timm":
        feature = (
            "maps [B, D, rows, columns]" if isinstance(encoder, ConvEncoder) else "[B, D], the mean of the patches"
        )
        return [
            _indented(
                "import timm\n\n"
                'model = timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0).eval()\n'
                "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
                f"features = model(transform(image)[None])  # {feature}"
            )
        ]
    if wanted.to == "transformers":
        return [
            _indented(
                "from transformers import AutoImageProcessor, AutoModel\n\n"
                'processor = AutoImageProcessor.from_pretrained("FOLDER")\n'
                'model = AutoModel.from_pretrained("FOLDER").eval()\n'
                'tokens = model(**processor(images=image, return_tensors="pt")).last_hidden_state\n'
                f"features = tokens[:, {encoder.prefix}:].mean(dim=1)"
            ),
            "The feature is the mean of the patch tokens; `pooler_output` is another thing.",
        ]
    facts = wanted.graph.facts(pretrained)
    given = {"tokens": "all tokens", "mean": "the mean of the patch tokens", "class": "the class token"}[
        facts["output"]
    ]
    about = f"Images are {facts['input']}; the output is {given}."
    if wanted.to == "onnx":
        return [
            _indented(
                "import onnxruntime\n\n"
                f'session = onnxruntime.InferenceSession("{FILES["onnx"]}")\n'
                f'(features,) = session.run(["{OUTPUT}"], {{"{INPUT}": images}})'
            ),
            about,
        ]
    if wanted.to == "torch-export":
        return [_indented(f'import torch\n\nmodel = torch.export.load("{FILES[wanted.to]}").module()'), about]
    return [
        _indented(
            "import unmask\n\n"
            f'encoder = unmask.open_encoder("{FILES["safetensors"]}")\n'
            "features = encoder.features(images)  # uint8 [B, C, H, W]"
        )
    ]


def header_facts(path: Path) -> dict[str, Any]:
    """What an encoder file's header says beside what is needed to build it."""
    from safetensors import safe_open

    from unmask.models.pretrained import HEADER

    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})[HEADER])
    return {name: header[name] for name in ("method", "version", "data", "imported") if name in header}
