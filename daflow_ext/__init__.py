"""daflow_ext: optical flow for real video; compiled correlation and sampling kernels, RAFT on top.

from daflow_ext import CorrBlock            # drop-in for RAFT's and its descendants'
from daflow_ext import RAFT, InputPadder    # flow; `daflow infer` does it on the command line
from daflow_ext import DAFlowPipeline       # degradation-aware flow; needs the extra "restoration"
from daflow_ext import ops, reference       # the kernels, and their statement in plain PyTorch
"""

import importlib

from . import ops, reference
from ._extras import require_diffusers
from .correlation import AlternateCorrBlock, CorrBlock
from .flow import align, flow_to_image, forward_backward_consistency, read_flow, warp, write_flow
from .frames import InputPadder, open_frames, read_image, write_image
from .models import RAFT, get_model, list_models

__version__ = "0.1.0"
__all__ = [
    "RAFT",
    "AlternateCorrBlock",
    "CorrBlock",
    "InputPadder",
    "align",
    "flow_to_image",
    "forward_backward_consistency",
    "get_model",
    "list_models",
    "open_frames",
    "ops",
    "read_flow",
    "read_image",
    "reference",
    "warp",
    "write_flow",
    "write_image",
]

# Imported when asked for: built on diffusers, which is optional. The folders of a pipeline name these classes.
_OPTIONAL = {
    "DAFlow": "models.daflow",
    "DAFlowPipeline": "models.pipeline",
    "DiT4SRTransformer2DModel": "features.dit4sr",
    "PixelUnshuffleVAE": "features.pixel_unshuffle",
    "Prompt": "features.prompt",
}


def __getattr__(name: str) -> object:
    if name not in _OPTIONAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_diffusers(f"{__name__}.{name}")
    return getattr(importlib.import_module(f".{_OPTIONAL[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OPTIONAL})
