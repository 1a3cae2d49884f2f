"""The stand-in for the VAE: exact inverse, layout of channels, files, the restoration loop on it."""

import pytest
import torch

pytest.importorskip("diffusers", reason="built on diffusers; pip install diffusers")

from daflow_ext.features.pixel_unshuffle import PixelUnshuffleVAE
from daflow_ext.features.restoration import LiftedRestoration, load_vae
from daflow_ext.models.config import build_parts


def test_exact_inverse_and_layout():
    vae, images = PixelUnshuffleVAE(), torch.randn(2, 3, 16, 24)
    latents = vae.encode(images).latents
    assert latents.shape == (2, 192, 2, 3)
    assert latents[1, 2 * 64 + 5 * 8 + 7, 1, 2] == images[1, 2, 8 + 5, 16 + 7]
    assert torch.equal(vae.decode(latents).sample, images)
    assert torch.equal(vae(images).sample, images)
    assert not list(vae.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files(dtype, tmp_path):
    PixelUnshuffleVAE(factor=4, latent_channels=48, scaling_factor=1.5).save_pretrained(tmp_path)
    vae = load_vae(tmp_path, dtype)
    assert isinstance(vae, PixelUnshuffleVAE)
    assert (vae.dtype, vae.device.type) == (dtype, "cpu")
    assert (vae.config.factor, vae.config.scaling_factor) == (4, 1.5)
    (tmp_path / "config.json").write_text('{"_class_name": "ModelMixin"}')
    with pytest.raises(ValueError, match=r"expected the class of an autoencoder, got 'ModelMixin'"):
        load_vae(tmp_path)


def test_frames_survive_the_restoration_loop():
    parts = build_parts("daflow-tiny")
    loop = LiftedRestoration(parts["vae"], parts["transformer"], parts["scheduler"], parts["prompt"])
    frames = (torch.rand(1, 2, 3, 32, 48) * 255).byte()
    latents = loop.encode(frames)
    assert latents.shape == (1, 2, 192, 4, 6)
    assert torch.allclose(loop.decode(latents), frames.float(), atol=1e-3)
    assert latents.abs().max() <= 2.0  # pixels in [-1, 1] times the scaling factor


def test_channels_must_be_those_of_the_factor():
    with pytest.raises(ValueError, match=r"latent_channels must be 3 \* factor\^2 = 48 for factor 4, got 192"):
        PixelUnshuffleVAE(factor=4)
