"""From one pixel to 8K: ops give what the reference gives, RAFT says what it needs, memory stays bounded."""

import pytest
import torch

from daflow_ext import RAFT, ops, reference

GRIDS = [(1, 1), (1, 2), (2, 1), (1, 1000), (1000, 1), (33, 1), (3, 257)]
MIB = 2**20


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_ops_on_thin_grids(grid):
    fmap1, fmap2 = torch.randn(2, 1, 20, *grid)
    coords = torch.rand(1, 2, *grid) * torch.tensor(grid[::-1]).reshape(2, 1, 1) - 0.5
    pyramid, truth = ops.corr_pyramid(fmap2, 3, backend="cpu"), reference.corr_pyramid(fmap2, 3)
    for level, expected in zip(pyramid, truth, strict=True):
        torch.testing.assert_close(level, expected, atol=1e-6, rtol=1e-6)
    found = ops.corr_lookup(fmap1, pyramid, coords, 2, backend="cpu")
    torch.testing.assert_close(
        found, ops.corr_lookup(fmap1, truth, coords, 2, backend="reference"), atol=1e-5, rtol=1e-5
    )
    found = ops.bilinear_sample(fmap2, coords, padding="border", backend="cpu")
    torch.testing.assert_close(found, reference.bilinear_sample(fmap2, coords, padding="border"), atol=1e-6, rtol=1e-6)
    if grid[0] * grid[1] < 300:
        volume = [torch.randn(1, *grid, *grid)]
        found = ops.volume_lookup(volume, coords, 2, backend="cpu")
        torch.testing.assert_close(
            found, ops.volume_lookup(volume, coords, 2, backend="reference"), atol=1e-6, rtol=1e-6
        )
    tokens = [fmap.flatten(2).mT for fmap in (fmap1, fmap2)]
    found = ops.softargmax_flow(*tokens, grid, backend="cpu")
    torch.testing.assert_close(found, reference.softargmax_flow(*tokens, grid), atol=2e-5 * max(grid), rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 16), (24, 20)])
def test_raft_says_which_sizes_it_takes(size):
    image = torch.zeros(1, 3, *size)
    message = f"images are {size[0]} x {size[1]}, but height and width must be multiples of 8 and at least 8 x 16"
    with pytest.raises(ValueError, match=message):
        RAFT(small=True).eval()(image, image, iters=1)


@pytest.mark.parametrize("size", [(8, 16), (16, 8), (8, 256)])
def test_raft_at_its_smallest(size):
    image = torch.rand(1, 3, *size) * 255
    with torch.no_grad():
        _, flow = RAFT(small=True).eval()(image, image, iters=2, test_mode=True)
    assert flow.shape == (1, 2, *size)
    assert flow.isfinite().all()


def test_the_command_takes_frames_of_one_pixel(tmp_path, tiny_weights, capsys):
    """It pads them."""
    from daflow_ext import read_flow, write_image
    from daflow_ext.cli import main

    for index in range(2):
        write_image(tmp_path / f"{index}.png", torch.full((3, 1, 1), 50 * index, dtype=torch.uint8))
    pair = [str(tmp_path / f"{index}.png") for index in range(2)]
    assert main(["infer", *pair, "--weights", str(tiny_weights), "--iters", "1", "-o", str(tmp_path / "a.flo")]) == 0
    assert read_flow(tmp_path / "a.flo").shape == (2, 1, 1)


# ---- 8K -------------------------------------------------------------------------------------------------------------

HEIGHT, WIDTH = 4320, 7680


def lookup_case(channels: int, radius: int, levels: int):
    """RAFT's lookup at an eighth of 8K; see ``benchmarks.timing.peak_bytes``."""
    grid = (HEIGHT // 8, WIDTH // 8)
    fmap1, fmap2 = torch.randn(2, 1, channels, *grid)
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    coords = torch.stack([x, y])[None] + torch.randn(1, 2, *grid) * 3
    small = ops.corr_pyramid(fmap2[:, :, :16, :16].contiguous(), 2)
    ops.corr_lookup(fmap1[:, :, :16, :16], small, coords[:, :, :16, :16].contiguous(), 1)

    def call():
        out = ops.corr_lookup(fmap1, ops.corr_pyramid(fmap2, levels), coords, radius)
        for row, column in ((0, 0), (270, 471), (539, 959)):  # against the definition, pixel by pixel
            at = (slice(None), slice(None), slice(row, row + 1), slice(column, column + 1))
            alone = reference.corr_lookup(fmap1[at], reference.corr_pyramid(fmap2, levels), coords[at], [radius] * 2)
            torch.testing.assert_close(out[at], alone, atol=1e-4, rtol=1e-4)
        return out

    return call


def sample_case():
    """A frame of 8K warped."""
    image = torch.rand(1, 3, HEIGHT, WIDTH)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    coords = torch.stack([x + 3, y - 2]).float()[None]
    ops.bilinear_sample(image[:, :, :8, :8], coords[:, :, :8, :8].contiguous())

    def call():
        out = ops.bilinear_sample(image, coords)
        assert torch.equal(out[:, :, 2:, :-3], image[:, :, :-2, 3:])
        return out

    return call


@pytest.mark.slow
def test_8k_in_bounded_memory():
    """What an op takes beyond its inputs is its output and, for the lookup, the pyramid and maps laid out anew."""
    from benchmarks.timing import peak_bytes

    cells, channels = HEIGHT * WIDTH // 64, 64
    output, maps = 4 * cells * 4 * 49, 4 * cells * channels
    taken = peak_bytes("tests.reliability.test_sizes:lookup_case", channels=channels, radius=3, levels=4)
    assert taken < output + 6 * maps + 64 * MIB, f"{taken / MIB:.0f} MiB"
    taken = peak_bytes("tests.reliability.test_sizes:sample_case")
    output = 4 * 3 * HEIGHT * WIDTH
    assert taken < 2 * output + 64 * MIB, f"{taken / MIB:.0f} MiB"  # the comparison copies nothing, a slice may
