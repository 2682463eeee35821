"""unmask: a folder of unlabelled images in, a vision encoder out.

    method = unmask.ConMIM(unmask.ConMIMConfig())
    losses = method(unmask.Batch.of(images))

Everything listed here is imported when it is first used, so that `import unmask` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Batch": "unmask.data.batch",
    "CropConfig": "unmask.data.batch",
    "CropLoader": "unmask.data.loader",
    "EvalLoader": "unmask.data.loader",
    "Source": "unmask.data.source",
    "ArraySource": "unmask.data.sources",
    "open_source": "unmask.data.sources",
    "MaskConfig": "unmask.masking",
    "Views": "unmask.views",
    "ColourConfig": "unmask.colour.plan",
    "Encoder": "unmask.models.encoder",
    "EncoderConfig": "unmask.models.encoder_config",
    "build_encoder": "unmask.models.build",
    "DecoderConfig": "unmask.models.decoder",
    "MLPHeadConfig": "unmask.models.heads",
    "OptimizerConfig": "unmask.optimisation",
    "build_optimizer": "unmask.optimisation",
    "finish_gradients": "unmask.optimisation",
    "follow_schedule": "unmask.optimisation",
    "Schedule": "unmask.schedule",
    "PretrainedEncoder": "unmask.models.pretrained",
    "open_encoder": "unmask.models.pretrained",
    "UnmaskFeatures": "unmask.embedding.transformer",
    "Method": "unmask.methods.base",
    "MethodConfig": "unmask.methods.base",
    "METHODS": "unmask.methods",
    "ConMIM": "unmask.methods.conmim",
    "ConMIMConfig": "unmask.methods.conmim",
    "CMAE": "unmask.methods.cmae",
    "CMAEConfig": "unmask.methods.cmae",
    "MAE": "unmask.methods.mae",
    "MAEConfig": "unmask.methods.mae",
    "SimMIM": "unmask.methods.simmim",
    "SimMIMConfig": "unmask.methods.simmim",
    "Wishes": "unmask.defaults",
    "fit_settings": "unmask.defaults",
    "save_encoder": "unmask.pretrain",
    "RunConfig": "unmask.config",
    "TrainingConfig": "unmask.training.trainer",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from unmask.colour.plan import ColourConfig as ColourConfig
    from unmask.config import RunConfig as RunConfig
    from unmask.data.batch import Batch as Batch
    from unmask.data.batch import CropConfig as CropConfig
    from unmask.data.loader import CropLoader as CropLoader
    from unmask.data.loader import EvalLoader as EvalLoader
    from unmask.data.source import Source as Source
    from unmask.data.sources import ArraySource as ArraySource
    from unmask.data.sources import open_source as open_source
    from unmask.defaults import Wishes as Wishes
    from unmask.defaults import fit_settings as fit_settings
    from unmask.embedding.transformer import UnmaskFeatures as UnmaskFeatures
    from unmask.masking import MaskConfig as MaskConfig
    from unmask.methods import METHODS as METHODS
    from unmask.methods.base import Method as Method
    from unmask.methods.base import MethodConfig as MethodConfig
    from unmask.methods.cmae import CMAE as CMAE
    from unmask.methods.cmae import CMAEConfig as CMAEConfig
    from unmask.methods.conmim import ConMIM as ConMIM
    from unmask.methods.conmim import ConMIMConfig as ConMIMConfig
    from unmask.methods.mae import MAE as MAE
    from unmask.methods.mae import MAEConfig as MAEConfig
    from unmask.methods.simmim import SimMIM as SimMIM
    from unmask.methods.simmim import SimMIMConfig as SimMIMConfig
    from unmask.models.build import build_encoder as build_encoder
    from unmask.models.decoder import DecoderConfig as DecoderConfig
    from unmask.models.encoder import Encoder as Encoder
    from unmask.models.encoder_config import EncoderConfig as EncoderConfig
    from unmask.models.heads import MLPHeadConfig as MLPHeadConfig
    from unmask.models.pretrained import PretrainedEncoder as PretrainedEncoder
    from unmask.models.pretrained import open_encoder as open_encoder
    from unmask.optimisation import OptimizerConfig as OptimizerConfig
    from unmask.optimisation import build_optimizer as build_optimizer
    from unmask.optimisation import finish_gradients as finish_gradients
    from unmask.optimisation import follow_schedule as follow_schedule
    from unmask.pretrain import save_encoder as save_encoder
    from unmask.schedule import Schedule as Schedule
    from unmask.training.trainer import TrainingConfig as TrainingConfig
    from unmask.views import Views as Views


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    return vars(importlib.import_module(_HOMES[name]))[name]
