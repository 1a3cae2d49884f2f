"""Update: one step of RAFT's recurrent refinement, and the upsampling of its result."""

from .block import BasicUpdateBlock, SmallUpdateBlock
from .convex_upsample import bilinear_upsample, convex_upsample
from .gru import ContextPass, ConvGRU, SepConvGRU
from .heads import FlowHead, MaskHead
from .motion_encoder import BasicMotionEncoder, SmallMotionEncoder

__all__ = [
    "BasicMotionEncoder",
    "BasicUpdateBlock",
    "ContextPass",
    "ConvGRU",
    "FlowHead",
    "MaskHead",
    "SepConvGRU",
    "SmallMotionEncoder",
    "SmallUpdateBlock",
    "bilinear_upsample",
    "convex_upsample",
]
