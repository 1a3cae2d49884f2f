"""DPT and bilinear heads: the equations once more in plain functions, sizes, equivariance, errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from daflow_ext.features import BilinearHead, DenseHead
from daflow_ext.features.dense_head import ResidualConvUnit, position_embedding

GRID = (3, 5)


def tokens(count: int, channels: int = 8, grid: tuple[int, int] = GRID, batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, grid[0] * grid[1], channels).double() for _ in range(count)]


def dense(scales=(1, 1, 2, 2), **options) -> DenseHead:
    return DenseHead(8, 6, channels=12, scales=scales, **options).double()


def test_the_default_head_is_the_stated_network():
    """Every line of the description, written out on the state dict."""
    head = dense(tap_channels=(4, 5, 6, 7))
    s = head.state_dict()
    taps = tokens(4)
    actual = head(taps, GRID)

    def conv(x, name, **options):
        return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), **options)

    def residual(x, name):
        inner = conv(F.relu(conv(F.relu(x), f"{name}.conv1", padding=1)), f"{name}.conv2", padding=1)
        return x + inner

    maps = []
    for index, tap in enumerate(taps):
        normal = F.layer_norm(tap, (8,), s["norm.weight"], s["norm.bias"])
        image = conv(normal.reshape(2, *GRID, 8).permute(0, 3, 1, 2), f"projections.{index}")
        if index >= 2:
            name = f"resizes.{index}"
            image = F.conv_transpose2d(image, s[f"{name}.weight"], s[f"{name}.bias"], stride=2)
        maps.append(conv(image, f"laterals.{index}", padding=1))
    assert not any(name.startswith("laterals") and name.endswith("bias") for name in s)

    fused = maps[3]
    for index, size in ((3, (6, 10)), (2, GRID), (1, GRID), (0, (6, 10))):
        if index < 3:
            fused = fused + residual(maps[index], f"fusions.{index}.lateral")
        fused = residual(fused, f"fusions.{index}.refine")
        if tuple(fused.shape[-2:]) != size:
            fused = F.interpolate(fused, size=size, mode="bilinear", align_corners=False)
        fused = conv(fused, f"fusions.{index}.project")
    torch.testing.assert_close(actual, conv(fused, "output", padding=1), rtol=0, atol=1e-10)


def test_the_bilinear_head_is_the_stated_network():
    head, taps = BilinearHead(8, 6, taps=2).double(), tokens(2)
    normal = [F.layer_norm(t, (8,), head.norm.weight, head.norm.bias) for t in taps]
    mixed = torch.cat(normal, -1) @ head.output.weight[:, :, 0, 0].T + head.output.bias
    expected = F.interpolate(mixed.reshape(2, *GRID, 6).permute(0, 3, 1, 2), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(head(taps, GRID), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (2, 2, 1, 1), (4, 2, 1, 0.5), (1,), (2, 1)])
@pytest.mark.parametrize("out_stride", [16, 8, 4])
def test_scales_and_out_stride(scales, out_stride):
    head = dense(scales, out_stride=out_stride)
    image = head(tokens(len(scales)), GRID)
    assert image.shape == (2, 6, 3 * 16 // out_stride, 5 * 16 // out_stride)
    image.square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "head", [dense(), dense((2, 2, 1, 1)), BilinearHead(8, 6).double()], ids=["dpt", "dpt-2211", "bilinear"]
)
def test_moving_the_tokens_by_one_moves_the_map_by_two(head):
    """Exact away from the border; a head with aligned corners or a position embedding would fail."""
    reach = 0 if isinstance(head, BilinearHead) else 16  # 3x3 convolutions: on the 1/16 grid they see far
    wide = (2 * reach + 8, 2 * reach + 9)
    scene = [torch.randn(1, wide[0] + 1, wide[1] + 1, 8).double() for _ in range(4)]
    first = head([s[:, :-1, :-1].flatten(1, 2) for s in scene], wide)
    second = head([s[:, 1:, 1:].flatten(1, 2) for s in scene], wide)
    margin = 2 * reach + 4
    inside = (slice(None), slice(None), slice(margin, -margin), slice(margin, -margin))
    moved = first.roll((-2, -2), (2, 3))
    assert first[inside].std() > 0.01
    torch.testing.assert_close(second[inside], moved[inside], rtol=0, atol=1e-10)


def test_rows_of_the_grid_are_rows_of_the_map():
    head, (height, width) = dense((1,), out_stride=16), (5, 7)
    taps = torch.zeros(1, height * width, 8).double()
    before = head([taps], (height, width))
    taps[0, 1 * width + 4] = torch.arange(8.0)
    change = (head([taps], (height, width)) - before)[0].abs().sum(0)
    y, x = divmod(int(change.argmax()), width)
    assert abs(y - 1) <= 1
    assert abs(x - 4) <= 1
    assert change[4].max() < change[1].max()


def test_residual_unit_keeps_negative_values():
    unit = ResidualConvUnit(3)
    for parameter in unit.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 3, 4, 4)
    kept = x.clone()
    assert torch.equal(unit(x), kept)
    assert torch.equal(x, kept)


def test_position_embedding_by_hand():
    image = position_embedding(torch.zeros(1, 8, 2, 4).double())
    assert image.shape == (8, 2, 4)
    half = math.hypot(2, 4)
    for y, x in ((0, 0), (1, 3), (0, 2)):
        u, v = (2 * x + 1 - 4) / half, (2 * y + 1 - 2) / half
        expected = [f(w * place) for place in (u, v) for f in (math.sin, math.cos) for w in (1.0, 0.1)]
        torch.testing.assert_close(image[:, y, x], 0.1 * torch.tensor(expected).double(), rtol=0, atol=1e-7)
    plain, placed = (DenseHead(8, 8, channels=12, position_embedding=on) for on in (False, True))
    placed.load_state_dict(plain.state_dict())
    taps = [t.float() for t in tokens(4)]
    assert not torch.allclose(placed(taps, GRID), plain(taps, GRID), atol=1e-3)
    with pytest.raises(ValueError, match="multiple of 4 channels, got 6"):
        position_embedding(torch.zeros(1, 6, 2, 2))


def test_tokens_come_in_any_precision():
    head, taps = dense().float(), [t.float() for t in tokens(4)]
    image = head([t.bfloat16() for t in taps], GRID)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, head([t.bfloat16().float() for t in taps], GRID))


def test_errors():
    with pytest.raises(ValueError, match=r"a scale must be 4, 2, 1 or 0.5, got 3"):
        dense((1, 3))
    with pytest.raises(ValueError, match=r"4 scales but 2 tap_channels \(3, 4\)"):
        dense(tap_channels=(3, 4))
    with pytest.raises(ValueError, match="reads 4 tapped layers, got 3"):
        dense()(tokens(3), GRID)
    with pytest.raises(ValueError, match=r"tap 0 must be \[B, 15, 8\] for a 3 x 5 token grid, got \[2, 8, 8\]"):
        dense()(tokens(4, grid=(2, 4)), GRID)
