"""Features: what the flow network sees of a frame (RAFT's convolutional encoders)."""

from .encoder import BasicEncoder, BottleneckBlock, Encoder, ResidualBlock, SmallEncoder

__all__ = ["BasicEncoder", "BottleneckBlock", "Encoder", "ResidualBlock", "SmallEncoder"]
