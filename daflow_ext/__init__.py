"""daflow_ext: optical flow for real video; compiled correlation and sampling kernels, RAFT on top.

from daflow_ext import CorrBlock            # drop-in for RAFT's and its descendants'
from daflow_ext import RAFT, InputPadder    # flow; `daflow infer` does it on the command line
from daflow_ext import ops, reference       # the kernels, and their statement in plain PyTorch
"""

from . import ops, reference
from .correlation import AlternateCorrBlock, CorrBlock
from .flow import flow_to_image, forward_backward_consistency, read_flow, warp, write_flow
from .frames import InputPadder, open_frames, read_image, write_image
from .models import RAFT

__version__ = "0.1.0"
__all__ = [
    "RAFT",
    "AlternateCorrBlock",
    "CorrBlock",
    "InputPadder",
    "flow_to_image",
    "forward_backward_consistency",
    "open_frames",
    "ops",
    "read_flow",
    "read_image",
    "reference",
    "warp",
    "write_flow",
    "write_image",
]
