"""The named configurations of DA-Flow, and the parts they are made of."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import torch
from torch import nn

from ..features.dit4sr import DiT4SRTransformer2DModel
from ..features.pixel_unshuffle import PixelUnshuffleVAE
from ..features.prompt import Prompt
from .daflow import DAFlow

SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}
"""``FlowMatchEulerDiscreteScheduler`` of SD3.5."""

_CLASSES = {
    "vae": diffusers.AutoencoderKL,
    "transformer": DiT4SRTransformer2DModel,
    "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
    "prompt": Prompt,
}

# The paper's: SD3.5-medium's VAE and transformer (the transformer's and flow network's defaults), RAFT-large.
_PAPER: dict[str, dict[str, Any]] = {
    "vae": {
        "latent_channels": 16,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "sample_size": 1024,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "transformer": {},
    "scheduler": SCHEDULER,
    "prompt": {},
    "flow": {},
}

# Runs on two CPU cores; at most 16 MB in half precision.
_TINY: dict[str, dict[str, Any]] = {
    "vae": {},
    "transformer": {
        "sample_size": 32,
        "in_channels": 192,
        "out_channels": 192,
        "num_layers": 8,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "joint_attention_dim": 16,
        "caption_projection_dim": 128,
        "pooled_projection_dim": 16,
        "pos_embed_max_size": 64,
        "prediction": "clean",  # 768 values per patch do not pass through 128 channels
        "dual_attention_layers": (),
    },
    "scheduler": SCHEDULER,
    "prompt": {"tokens": 1, "embed_dim": 16, "pooled_dim": 16},
    "flow": {
        "small": True,
        "tap_layers": (1, 4, 5, 6),
        "token_channels": 128,
        "match_channels": 64,
        "context_channels": 32,
        "head_channels": 40,
        "tap_channels": None,
    },
}

CONFIGURATIONS = {"daflow": _PAPER, "daflow-tiny": _TINY}


def build_parts(name: str, torch_dtype: torch.dtype = torch.float32, **flow: Any) -> dict[str, Any]:
    """The parts of a configuration with random weights, in evaluation mode.

    Args:
        name: a key of ``CONFIGURATIONS``. torch_dtype: of all but the flow network, which stays in float32.
        flow: changes to the configuration of the flow network.
    """
    configuration: Mapping[str, Mapping[str, Any]] = CONFIGURATIONS[name]
    classes = _CLASSES | ({"vae": PixelUnshuffleVAE} if name == "daflow-tiny" else {})
    with _default_dtype(torch_dtype):
        parts = {part: make(**configuration[part]) for part, make in classes.items()}
    for part in parts.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part.eval(), torch_dtype)  # tables that are made in float32; diffusers' own `to` warns of it
    return parts | {"flow": DAFlow(**{**configuration["flow"], **flow}).eval()}


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters are born in ``dtype``, so that the full size never exists in float32 first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
