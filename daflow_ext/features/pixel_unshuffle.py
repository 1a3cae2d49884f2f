"""A stand-in for the VAE that learns nothing and loses nothing: every 8x8 patch of pixels becomes channels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config

from .strict_loading import StrictLoadingMixin


@dataclass
class EncodedImages:
    """latents: [B, 3 * factor^2, H / factor, W / factor]."""

    latents: torch.Tensor


@dataclass
class DecodedImages:
    """sample: [B, 3, H, W] in [-1, 1]."""

    sample: torch.Tensor


class PixelUnshuffleVAE(StrictLoadingMixin, ModelMixin, ConfigMixin):
    """Space to depth, with the interface of diffusers' ``AutoencoderTiny``; ``decode`` is the exact inverse.

    Args:
        factor: image pixels per latent pixel.
        latent_channels: 3 * factor^2; stored for those who read the configuration of a VAE.
        scaling_factor, shift_factor: the users' normalisation (z - shift) * scaling; 2 brings pixels of natural images
            near unit variance.
    Raises:
        ValueError: latent_channels is another number.
    """

    @register_to_config
    def __init__(
        self,
        factor: int = 8,
        latent_channels: int = 192,
        scaling_factor: float = 2.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        if latent_channels != 3 * factor**2:
            raise ValueError(
                f"latent_channels must be 3 * factor^2 = {3 * factor**2} for factor {factor}, got {latent_channels}"
            )
        # carries the dtype and device that callers ask a model for
        self.register_buffer("empty", torch.zeros(0))

    def encode(self, x: torch.Tensor) -> EncodedImages:
        """[B, 3, H, W] in [-1, 1], sides multiples of ``factor``."""
        return EncodedImages(F.pixel_unshuffle(x, self.config.factor))

    def decode(self, z: torch.Tensor) -> DecodedImages:
        """Inverse of :meth:`encode`."""
        return DecodedImages(F.pixel_shuffle(z, self.config.factor))

    def forward(self, sample: torch.Tensor) -> DecodedImages:
        """Encoding and decoding, which is the identity."""
        return self.decode(self.encode(sample).latents)
