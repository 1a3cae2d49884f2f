"""DiT4SR, a restoration MM-DiT on SD3.5-medium, lifted to several frames."""

from .transformer import DiT4SROutput, DiT4SRTransformer2DModel

__all__ = ["DiT4SROutput", "DiT4SRTransformer2DModel"]
