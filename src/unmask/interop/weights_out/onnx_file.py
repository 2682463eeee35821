"""An encoder as an ONNX file, run again by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.extras import require
from unmask.interop.weights_out.compare import Difference
from unmask.interop.weights_out.graph import INPUT, OUTPUT, Graph, check_graph, compared, dimensions, program
from unmask.models.encoder import Encoder
from unmask.models.pretrained import HEADER, PretrainedEncoder

LARGEST = 1_800_000_000
"""Bytes of weights that one file can hold (protobuf ends at 2 GiB); larger ones lie beside it."""


def write_onnx(pretrained: PretrainedEncoder, graph: Graph, images_BCHW: Tensor, path: Path) -> list[Difference]:
    """Write the file (and `path`.data beside it for a very large encoder), and compare what onnxruntime computes.

    ValueError for what the encoder's graph cannot do, and where onnx, onnxscript and onnxruntime are not installed.
    """
    check_graph(pretrained.encoder, graph)
    require("onnx", "--to onnx needs")
    traced = program(pretrained, graph, images_BCHW)
    with _quietly():
        made = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            # The program has them already; this gives the file their names.
            dynamic_shapes=(dimensions(pretrained.encoder, graph),),
            verbose=False,
        )
        assert made is not None
        made.model.metadata_props[HEADER] = json.dumps(graph.facts(pretrained))
        made.save(path, external_data=is_large(pretrained.encoder))
    return compared(_runner(path), pretrained, graph, images_BCHW)


def is_large(encoder: Encoder) -> bool:
    """Whether the weights need a file of their own."""
    return sum(value.nbytes for value in encoder.network.state_dict().values()) > LARGEST


def _runner(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (features,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(features)

    return run


@contextlib.contextmanager
def _quietly() -> Any:
    """Inside, torch's exporter does not tell about its steps, nor onnxscript about what it leaves as it is."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
