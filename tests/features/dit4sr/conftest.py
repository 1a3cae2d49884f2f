"""A transformer small enough for tests, and the goldens of the official code."""

import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="the transformer is built on diffusers; pip install diffusers")

TINY = {
    "sample_size": 16,
    "num_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "caption_projection_dim": 64,
    "pooled_projection_dim": 24,
    "pos_embed_max_size": 24,
    "dual_attention_layers": (0, 1),
}


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Nothing left at zero: what starts at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if "norm_" in name and tensor.dim() == 1 and "linear" not in name:
            noise = 1 + 0.25 * noise
        elif tensor.dim() == 1:
            noise = 0.2 * noise
        else:
            noise = noise * tensor[0].numel() ** -0.5
        tensor.data.copy_(noise)
    return model


@pytest.fixture
def tiny_config() -> dict:
    return dict(TINY)


@pytest.fixture
def tiny():
    """tiny(**config) -> a model with random weights in evaluation mode, float64."""
    from daflow_ext.features.dit4sr import DiT4SRTransformer2DModel

    def make(**config):
        return randomise(DiT4SRTransformer2DModel(**{**TINY, **config})).eval().double()

    return make


@pytest.fixture
def clip():
    """clip(batch, frames, height, width) -> the arguments of forward, float64."""

    def make(batch=1, frames=3, height=8, width=12):
        generator = torch.Generator().manual_seed(2)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        return {
            "hidden_states": normal(batch, frames, 16, height, width),
            "lq_hidden_states": normal(batch, frames, 16, height, width),
            "encoder_hidden_states": normal(batch, 10, 32),
            "pooled_projections": normal(batch, 24),
            "timestep": torch.full((batch,), 750.0),
        }

    return make


@pytest.fixture(scope="session")
def golden(shared):
    """Files of the official implementation: golden(name) -> tensors; golden.config, golden.state."""

    class Golden:
        folder = shared / "golden/dit4sr"
        config = json.loads((folder / "config.json").read_text())
        state = load_file(folder / "state_dict.safetensors")
        inputs = load_file(folder / "inputs.safetensors")

        def __call__(self, name):
            return load_file(self.folder / f"{name}.safetensors")

    return Golden()
