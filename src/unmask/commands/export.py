"""`unmask export RUN --to timm|transformers|onnx|torch-export|safetensors -o OUT`: an encoder for others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask import __version__
from unmask.commands.evaluate.classifiers import classifier_path
from unmask.commands.evaluate.shared import plain_table, print_json
from unmask.commands.parse import parse
from unmask.interop.weights_out.classifier_folder import export_classifier
from unmask.interop.weights_out.compare import Difference
from unmask.interop.weights_out.export import Target, WantedExport, export
from unmask.interop.weights_out.graph import Graph, Output
from unmask.interop.weights_out.hub import check_name, push
from unmask.model_card import check_licence, classifier_card, header_facts, model_card, origin_of
from unmask.models.pretrained import open_encoder
from unmask.run_folder import RunFolder
from unmask.tasks.classifier_file import classifier_facts, read_classifier


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write an encoder or a classifier as others load it.

    The export is loaded again by their own code and must give our features or answers.
    """

    run: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="RUN"),
        Doc(
            "A run folder, an encoder.safetensors, timm:NAME, or a classifier.safetensors (for timm and transformers)."
        ),
    ]
    to: Annotated[Target, Doc("Who will load it.")]
    out: Annotated[
        Path,
        tyro.conf.arg(aliases=["-o"]),
        Doc("A new folder; for onnx, torch-export and safetensors also a file: NAME.onnx, .pt2 or .safetensors."),
    ]
    output: Annotated[Output, Doc("What onnx and torch-export give: all tokens, their mean, or the class token.")] = (
        "mean"
    )
    normalise: Annotated[
        Literal["none", "float", "uint8"],
        Doc("Images that onnx and torch-export normalise inside: values in [0, 1], or bytes. none: normalised ones."),
    ] = "none"
    dynamic_size: Annotated[
        bool, Doc("Let onnx and torch-export take images of any size, where the encoder's positions can follow.")
    ] = False
    data: Annotated[str | None, Doc("Images to compare features on. Default: built-in ones.")] = None
    tolerance: Annotated[float, Doc("Largest difference that is let through, by the largest feature.")] = 1e-4
    license: Annotated[str, Doc("The licence that the model card names.")] = "other"
    push: Annotated[
        str | None, tyro.conf.arg(metavar="OWNER/NAME"), Doc("Upload the folder to this repository of Hugging Face.")
    ] = None
    public: Annotated[bool, Doc("Make the repository public, where --push makes one.")] = False
    json: Annotated[bool, Doc("Print one JSON object instead of a table.")] = False


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask export`."""
    command = parse(Export, arguments, command="export")
    check_licence(command.license)
    wanted = _wanted(command)
    if command.push is not None:
        check_name(command.push)
        if not wanted.is_folder:
            raise ValueError(f"--push uploads a folder with a model card; give one as --out, not {command.out}")
    elif command.public:
        raise ValueError("--public is for --push")
    path = Path(command.run)
    folder = RunFolder(path)
    classifier = None if path.is_dir() and folder.encoder_file.exists() else classifier_path(command.run)
    if classifier is not None:
        return _finish(command, _export_classifier(command, classifier, wanted))
    pretrained = open_encoder(command.run)
    header = {} if command.run.startswith("timm:") else header_facts(folder.encoder_file if path.is_dir() else path)
    origin = origin_of(pretrained, header, folder if folder.config_file.is_file() else None)
    wanted = dataclasses.replace(wanted, facts={**header, "version": header.get("version", __version__)})

    def card(found: list[Difference]) -> str:
        return model_card(pretrained, wanted, origin, command.license, found)

    return _finish(command, export(pretrained, wanted, card))


def _export_classifier(command: Export, path: Path, wanted: WantedExport) -> list[Difference]:
    classifier, facts = read_classifier(path), classifier_facts(path)
    return export_classifier(
        path, wanted, lambda found: classifier_card(classifier, wanted, facts, command.license, found)
    )


def _finish(command: Export, found: list[Difference]) -> int:
    """Push where that was asked for, and tell."""
    pushed = None if command.push is None else push(command.out, command.push, public=command.public)
    _tell(command, found, pushed)
    return 0


def _wanted(command: Export) -> WantedExport:
    graph = Graph(
        output=command.output,
        normalise=None if command.normalise == "none" else command.normalise,
        any_size=command.dynamic_size,
    )
    return WantedExport(to=command.to, out=command.out, graph=graph, data=command.data, tolerance=command.tolerance)


def _tell(command: Export, found: list[Difference], pushed: str | None) -> None:
    if command.json:
        differences = [dataclasses.asdict(one) for one in found]
        print_json({"to": command.to, "out": str(command.out), "differences": differences, "pushed": pushed})
        return
    console = Console(soft_wrap=True)
    table = plain_table("loaded again and compared", "largest difference", "of the largest feature")
    for one in found:
        table.add_row(one.what, f"{one.absolute:.2g}", f"{one.relative:.2g}")
    console.print(table)
    console.print(f"written       {command.out}", highlight=False, markup=False)
    if pushed is not None:
        console.print(f"pushed        {pushed}", highlight=False, markup=False)
