"""RAFT's encoders: what they are invariant to, and where their gradients go."""

import pytest
import torch
import torch.nn.functional as F

from daflow_ext.features import BasicEncoder, BottleneckBlock, ResidualBlock, SmallEncoder
from daflow_ext.features.encoder import InstanceNorm

ENCODERS = [BasicEncoder, SmallEncoder]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("shift", [(8, 0), (0, -16)])
def test_moving_the_image_by_the_stride_moves_the_features(encoder, shift):
    model = encoder(16, "none").double().eval()
    image = torch.rand(1, 3, 192, 192, dtype=torch.float64)
    moved = torch.roll(image, shift, dims=(2, 3))
    inside = slice(10, 14)  # no pixel of the border (radius of the receptive field: 57 px) nor of the seam is seen
    expected = torch.roll(model(image), (shift[0] // 8, shift[1] // 8), dims=(2, 3))
    torch.testing.assert_close(model(moved)[..., inside, inside], expected[..., inside, inside], rtol=0, atol=1e-12)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_instance_norm_makes_features_blind_to_contrast(encoder):
    model = encoder(16, "instance").double().eval()
    image = torch.rand(2, 3, 64, 72, dtype=torch.float64) * 2 - 1
    expected = model(image)
    torch.testing.assert_close(model(3 * image), expected, rtol=0, atol=3e-4 * expected.abs().max().item())  # eps
    assert (model(image + torch.rand_like(image)) - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_is_torchs(dtype, memory_format, grad):
    offsets = torch.tensor([0.0, 2.0, -30.0, 0.5, 100.0], dtype=dtype).view(1, 5, 1, 1)  # far from 0: squares cancel
    x = (torch.randn(2, 5, 9, 7, dtype=dtype) * 3 + offsets).contiguous(memory_format=memory_format)
    before = x.clone()
    with torch.set_grad_enabled(grad):
        out = InstanceNorm()(x)
    expected = F.instance_norm(x.double()).to(dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-13)
    assert torch.equal(x, before)


def test_instance_norm_in_bands(monkeypatch):
    monkeypatch.setattr("daflow_ext.features.encoder._BAND", 100)  # two rows each, and one
    x = torch.randn(2, 5, 9, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(InstanceNorm()(x), F.instance_norm(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_inference_in_either_layout_is_training_s_forward(encoder):
    model = encoder(16, "instance").double().eval()
    image = torch.rand(1, 3, 32, 40, dtype=torch.float64)
    expected = model(image).detach()
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.inference_mode():
            out = model(image.contiguous(memory_format=layout))
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)


def test_residual_block_is_its_equation():
    block = ResidualBlock(4, 6, "batch", stride=2).double().eval()
    for norm in (block.norm1, block.norm2, block.norm3):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.uniform_(norm.weight, -1, 1)
        torch.nn.init.uniform_(norm.bias, -1, 1)
    x = torch.randn(2, 4, 10, 12, dtype=torch.float64)

    def norm(values, module):
        mean, scale = module.running_mean, (module.running_var + 1e-5).rsqrt()
        normal = (values - mean[:, None, None]) * scale[:, None, None]
        return normal * module.weight[:, None, None] + module.bias[:, None, None]

    y = norm(F.conv2d(x, block.conv1.weight, block.conv1.bias, stride=2, padding=1), block.norm1).relu()
    y = norm(F.conv2d(y, block.conv2.weight, block.conv2.bias, padding=1), block.norm2).relu()
    projection = block.downsample[0]
    shortcut = norm(F.conv2d(x, projection.weight, projection.bias, stride=2), block.norm3)
    torch.testing.assert_close(block(x), (shortcut + y).relu(), rtol=0, atol=1e-12)


def test_bottleneck_block_is_its_equation():
    block = BottleneckBlock(8, 8, "instance").double()
    x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    y = F.instance_norm(F.conv2d(x, block.conv1.weight, block.conv1.bias)).relu()
    y = F.instance_norm(F.conv2d(y, block.conv2.weight, block.conv2.bias, padding=1)).relu()
    y = F.instance_norm(F.conv2d(y, block.conv3.weight, block.conv3.bias)).relu()
    torch.testing.assert_close(block(x), (x + y).relu(), rtol=0, atol=1e-12)


def test_dropout_drops_whole_channels_in_training_only():
    model = SmallEncoder(64, "none", dropout=0.5)
    image = torch.rand(1, 3, 32, 32)
    dropped = (model.train()(image) == 0).flatten(2)
    assert torch.equal(dropped.any(2), dropped.all(2))
    assert 10 < dropped.all(2).sum() < 54
    assert not (model.eval()(image) == 0).flatten(2).all(2).any()


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match=r"batch, instance, none.*'layer'"):
        BasicEncoder(16, "layer")
