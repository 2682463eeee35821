"""An encoder as a file of torch.export, loaded again by torch alone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from unmask.interop.weights_out.compare import Difference
from unmask.interop.weights_out.graph import Graph, check_graph, compared, program
from unmask.models.pretrained import PretrainedEncoder

FACTS = "unmask_encoder.json"
"""Name, among the extra files within the file, of what one must know to use it."""


def write_torch_export(
    pretrained: PretrainedEncoder, graph: Graph, images_BCHW: Tensor, path: Path
) -> list[Difference]:
    """Write the file, and compare what `torch.export.load` makes of it. ValueError for what no graph can do."""
    check_graph(pretrained.encoder, graph)
    with warnings.catch_warnings(), torch.no_grad():
        # torch says of its own files that their format may change.
        warnings.simplefilter("ignore")
        facts = json.dumps(graph.facts(pretrained))
        torch.export.save(program(pretrained, graph, images_BCHW), path, extra_files={FACTS: facts})
        return compared(torch.export.load(path).module(), pretrained, graph, images_BCHW)
