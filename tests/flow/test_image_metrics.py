"""PSNR, SSIM, LPIPS: by hand where that is possible, and our LPIPS against torchmetrics' network."""

import importlib
import sys

import pytest
import torch

from daflow_ext.flow import metrics


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(2, 3, 72, 80, generator=generator) * 200
    return reference, reference + 25.5  # a tenth of the range everywhere


def test_psnr_by_hand(frames):
    pytest.importorskip("torchmetrics")
    assert metrics.psnr(frames[1], frames[0]).item() == pytest.approx(20.0, abs=1e-3)
    mixed = torch.stack([frames[1][0], frames[0][1] + 2.55])
    assert metrics.psnr(mixed, frames[0]).item() == pytest.approx((20 + 40) / 2, abs=1e-3)  # mean of dB, not of errors


def test_ssim_of_equal_and_of_shifted_frames(frames):
    pytest.importorskip("torchmetrics")
    assert metrics.ssim(frames[0], frames[0]).item() == pytest.approx(1, abs=1e-5)
    flat, brighter = torch.full((1, 3, 32, 32), 51.0), torch.full((1, 3, 32, 32), 102.0)
    luminance = (2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4)  # flat patches: the other factor is 1
    assert metrics.ssim(brighter, flat).item() == pytest.approx(luminance, abs=1e-4)


@pytest.mark.parametrize("score", [metrics.psnr, metrics.ssim, metrics.lpips])
def test_colours_must_be_in_0_to_255(score):
    with pytest.raises(ValueError, match=r"expected colours in \[0, 255\]"):
        score(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"both must be \[T, 3, H, W\]"):
        score(torch.zeros(3, 64, 64), torch.zeros(3, 64, 64))


def test_a_missing_torchmetrics_says_what_to_install(monkeypatch, frames):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match=r"pip install 'daflow_ext\[metrics\]'"):
        metrics.psnr(*frames)


def alexnet_features():
    conv, relu, pool = torch.nn.Conv2d, torch.nn.ReLU, torch.nn.MaxPool2d
    return torch.nn.Sequential(
        conv(3, 64, 11, 4, 2), relu(), pool(3, 2), conv(64, 192, 5, 1, 2), relu(), pool(3, 2),
        conv(192, 384, 3, 1, 1), relu(), conv(384, 256, 3, 1, 1), relu(), conv(256, 256, 3, 1, 1), relu(), pool(3, 2),
    )  # fmt: skip


def test_lpips_equals_torchmetrics_network(shared, monkeypatch, frames):
    weights = shared / "weights" / "lpips_alex_full.safetensors"
    if not weights.is_file():
        pytest.skip(f"{weights} is not there")
    pytest.importorskip("torchmetrics")
    from safetensors.torch import load_file

    theirs = importlib.import_module("torchmetrics.functional.image.lpips")
    state = load_file(weights)
    features = alexnet_features()
    prefix = "features."
    features.load_state_dict({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: features)
    reference, images = frames
    network = theirs._NoTrainLpips(net="alex")
    for level in range(5):
        torch.testing.assert_close(getattr(network, f"lin{level}").model[-1].weight, state[f"lin{level}.weight"])
    expected = network(images / 255, reference / 255, normalize=True).mean().item()
    assert expected > 0.001
    assert metrics.lpips(images, reference, weights=weights).item() == pytest.approx(expected, rel=1e-5)
    assert metrics.lpips(reference, reference, weights=weights).item() == 0


def test_lpips_weights_of_another_model_are_named(tmp_path, frames):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"other\.safetensors holds no LPIPS AlexNet: features\.0\.bias"):
        metrics.lpips(*frames, weights=path)
    path.write_text("no weights")
    metrics.image._lpips_weights.cache_clear()
    with pytest.raises(ValueError, match=r"other\.safetensors is no safetensors file"):
        metrics.lpips(*frames, weights=path)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        metrics.lpips(*frames, weights=tmp_path / "absent.safetensors")


def test_lpips_without_file_and_torchvision_says_what_is_missing(monkeypatch, frames):
    functional = pytest.importorskip("torchmetrics.functional.image")

    def compute(*_, **__):
        raise ModuleNotFoundError("Torchvision is not installed.")

    monkeypatch.setattr(functional, "learned_perceptual_image_patch_similarity", compute)
    with pytest.raises(ImportError, match=r"without a file of weights needs torchvision .*; give a file"):
        metrics.lpips(*frames)
