"""The page about a run: reads the run folder, lets the method show itself on some images, writes report.html."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unmask import __version__
from unmask.config import RunConfig
from unmask.data.loader import CropLoader, EvalLoader
from unmask.data.pixel_range import in_range
from unmask.data.sources import Source, open_source
from unmask.evaluation.knn import neighbours
from unmask.methods.base import Method
from unmask.models.convolutional import ConvEncoder
from unmask.models.pretrained import PretrainedEncoder
from unmask.pretrain import build_method, exported_encoder
from unmask.report import (
    Accuracy,
    Figure,
    Page,
    Sheet,
    accuracies,
    attention_sheet,
    evaluation_table,
    health_table,
    learning_charts,
    left_out_table,
    neighbour_sheet,
    pick_queries,
    read_log,
    reconstruction_sheet,
    render_page,
    run_facts,
    run_warnings,
    similarity_sheet,
)
from unmask.report.false_colour import Chosen, check_chosen
from unmask.run_folder import RunFolder
from unmask.training.checkpoint import load_module_tensors
from unmask.views import Views, denormalise

SHOWN = 6
JUDGED = 64
GALLERY = 2000
NEIGHBOURS = 6
QUERIES = 4


def write_report(folder: RunFolder, chosen: Chosen = None) -> Path:
    """Write `report.html` of a run, finished or not; returns its path.

    `chosen` names the channels that pictures show (see `FalseColour`). ValueError where the folder holds no run or
    cannot be written, and for channels that its images do not have.
    """
    config = folder.config()
    check_chosen(chosen, config.settings.encoder.channels)
    records = read_log(folder.log_file) if folder.log_file.exists() else []
    step, _ = folder.last_step()
    method = build_method(config)
    info = method.info
    figures, trouble = _figures(config, folder, method, chosen)
    if folder.steps_left_out():
        trouble.append(f"`unmask replay {folder.path}` takes a step that was left out again, and says what broke.")
    page = Page(
        run=folder.path.name,
        method=info.title,
        idea=info.idea,
        encoder=str(config.settings.encoder),
        data=config.data,
        verdict=_verdict(accuracies(records)),
        accuracies=accuracies(records),
        facts=run_facts(records, step * config.training.batch_size),
        warnings=(*run_warnings(records), *trouble),
        charts=learning_charts(records),
        figures=figures,
        tables=(evaluation_table(records), health_table(records), left_out_table(records)),
        config=json.loads(folder.config_file.read_text()),
        bad_files=folder.bad_files.read_text(encoding="utf-8", errors="replace").splitlines()
        if folder.bad_files.exists()
        else (),
        versions={"unmask": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "torchvision", "timm")},
    )
    return folder.write_report(render_page(page))


def _verdict(scores: tuple[Accuracy, ...]) -> str:
    """What the run is worth, as far as the log tells."""
    sentences = []
    for accuracy in scores:
        trained, start, pixels = accuracy.pretrained, accuracy.random, accuracy.pixels
        if trained is None:
            continue
        sentence = f"{accuracy.name}: {trained.value:.1f} %"
        if start is not None:
            gap = trained.value - start.value
            sentence += f", {abs(gap):.1f} points {'above' if gap >= 0 else 'below'} the random start"
        if pixels is not None:
            gap = trained.value - pixels.value
            sentence += f" and {abs(gap):.1f} {'above' if gap >= 0 else 'below'} raw pixels"
        sentences.append(sentence + ".")
    return " ".join(sentences) or (
        "Not evaluated yet: `unmask evaluate knn RUN DATA` on labelled images says what the encoder is worth."
    )


def _figures(config: RunConfig, folder: RunFolder, method: Method, chosen: Chosen) -> tuple[list[Figure], list[str]]:
    """Pictures of what the method has learnt, or a sentence why there are none."""
    try:
        checkpoint, _ = folder.newest_checkpoint(torch.device("cpu"))
        if checkpoint is None:
            return [], ["There are no pictures: the run has no checkpoint."]
        source = in_range(open_source(config.data), config.pixel_range)
        load_module_tensors(method, checkpoint.tensors)
        method.eval()
        start = exported_encoder(build_method(config), "random start").to(torch.device("cpu"))
        trained = exported_encoder(method, str(folder.path)).to(torch.device("cpu"))
        views = _views(config, method, source)
        return [
            *_method_figures(method, views, chosen),
            *_attention_figures(method, trained, start, views, chosen),
            _neighbour_figure(trained, start, source, chosen),
        ], []
    except ValueError as error:
        return [], [f"There are no pictures: {error}."]


def _views(config: RunConfig, method: Method, source: Source) -> Views:
    """Views of some images as training sees them, the same ones at every call."""
    loader = CropLoader(
        source,
        method.crops,
        batch_size=min(JUDGED, len(source)),
        total_steps=1,
        seed=config.training.seed + 2,
        workers=0,
        channels=config.settings.encoder.channels,
        max_bad_share=1.0,
        captions=method.reads_captions,
    )
    return method.make_views(next(iter(loader)))


@torch.no_grad()
def _method_figures(method: Method, views: Views, chosen: Chosen) -> list[Figure]:
    """What this method predicts: painted patches, or places found; nothing where it hides no patches."""
    grid = method.exported().grid
    inspection = method.inspect(views)
    online = _pictures(method, views.online)
    figures: list[Figure] = []
    if views.mask_BN is None:
        return figures
    if inspection.reconstruction_BCHW is not None:
        sheet = reconstruction_sheet(
            online[:SHOWN],
            _pictures(method, inspection.reconstruction_BCHW)[:SHOWN],
            views.mask_BN[:SHOWN],
            grid,
            chosen=chosen,
        )
        figures.append(Figure(title="Reconstruction", sheets={"": sheet}))
    if inspection.similarity_BNN is not None:
        target = online if views.target is None else _pictures(method, views.target)
        queries_BQ = pick_queries(online[:SHOWN], views.mask_BN[:SHOWN], grid, QUERIES)
        sheet = similarity_sheet(
            online[:SHOWN],
            target[:SHOWN],
            views.mask_BN[:SHOWN],
            inspection.similarity_BNN[:SHOWN],
            queries_BQ,
            grid,
            chosen=chosen,
        )
        figures.append(Figure(title="Where hidden patches find themselves", sheets={"": sheet}))
    return figures


def _pictures(method: Method, images_BCHW: Tensor) -> Tensor:
    """Normalised images back in [0, 1]."""
    return denormalise(images_BCHW, method.config.mean, method.config.std)


def _attention_figures(
    method: Method, trained: PretrainedEncoder, start: PretrainedEncoder, views: Views, chosen: Chosen
) -> list[Figure]:
    """Where the last block looks; nothing for convolutional networks, which have no attention."""
    if isinstance(trained.encoder, ConvEncoder):
        return []

    def sheet(network: PretrainedEncoder) -> Sheet:
        attention_BAN = network.encoder.attention(views.online[:SHOWN])
        pictures_BCHW = _pictures(method, views.online[:SHOWN])
        return attention_sheet(pictures_BCHW, attention_BAN, network.encoder.grid, chosen=chosen)

    return [Figure(title="Attention", sheets={"Random start": sheet(start), "Pre-trained": sheet(trained)})]


def _neighbour_figure(trained: PretrainedEncoder, start: PretrainedEncoder, source: Source, chosen: Chosen) -> Figure:
    """The nearest images of some images, before and after training."""
    gallery = source.subset(np.random.default_rng(0).permutation(len(source))[:GALLERY])
    height, width = trained.encoder.image_size
    loader = EvalLoader(
        gallery,
        height=height,
        width=width,
        channels=trained.encoder.config.channels,
        batch_size=128,
        workers=0,
    )
    batches = list(loader)
    images_BCHW = torch.cat([images for images, _ in batches])
    indices_B = torch.cat([indices for _, indices in batches])

    def sheet(network: PretrainedEncoder) -> Sheet:
        features_BD = torch.cat([network.features(part) for part in images_BCHW.split(128)])
        queries = min(SHOWN, len(features_BD))
        found_QK, _ = neighbours(features_BD, features_BD[:queries], NEIGHBOURS + 1)
        # A query is its own nearest image.
        found_QK = found_QK[:, 1:]
        labels = (
            None
            if gallery.labels is None or gallery.classes is None
            else [gallery.classes[gallery.labels[int(index)]] for index in indices_B]
        )
        pictures = images_BCHW.float() / 255
        return neighbour_sheet(
            pictures[:queries],
            pictures[found_QK],
            query_labels=None if labels is None else labels[:queries],
            neighbour_labels=None if labels is None else [[labels[int(i)] for i in row] for row in found_QK],
            chosen=chosen,
        )

    return Figure(title="Nearest neighbours", sheets={"Random start": sheet(start), "Pre-trained": sheet(trained)})
