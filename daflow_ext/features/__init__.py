"""Features: what the flow network sees of a frame (RAFT's encoders, heads on a transformer's tokens)."""

from .dense_head import BilinearHead, DenseHead
from .encoder import BasicEncoder, BottleneckBlock, Encoder, ResidualBlock, SmallEncoder
from .fuse import HybridFeatures

__all__ = [
    "BasicEncoder",
    "BilinearHead",
    "BottleneckBlock",
    "DenseHead",
    "Encoder",
    "HybridFeatures",
    "ResidualBlock",
    "SmallEncoder",
]
