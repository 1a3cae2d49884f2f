"""pytest-benchmark entries of what inference spends its time on; compare runs by ``--benchmark-compare``."""

import pytest
import torch

from benchmarks import corr_block, timing
from benchmarks.plain import PlainRAFT
from daflow_ext import ops
from daflow_ext.features import BasicEncoder
from daflow_ext.models import RAFT
from daflow_ext.update import BasicUpdateBlock, convex_upsample

GRID = (32, 48)


def watch(benchmark, call):
    """``call`` on one thread without gradients; few rounds, as all of this must stay quick."""
    with torch.inference_mode(), timing.threads(1):
        return benchmark.pedantic(call, rounds=5, warmup_rounds=1)


def _channels_last(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_corr_lookup(benchmark, dtype):
    fmap1, fmap2, coords = corr_block.inputs(GRID)
    pyramid = ops.corr_pyramid(fmap2.to(dtype), 4)
    fmap1 = fmap1.to(dtype).contiguous(memory_format=torch.channels_last)
    assert watch(benchmark, lambda: ops.corr_lookup(fmap1, pyramid, coords[0], 4)).shape == (1, 324, *GRID)


def test_corr_lookup_of_a_contiguous_map(benchmark):
    fmap1, fmap2, coords = corr_block.inputs(GRID)
    pyramid = ops.corr_pyramid(fmap2, 4)
    assert watch(benchmark, lambda: ops.corr_lookup(fmap1, pyramid, coords[0], 4)).shape == (1, 324, *GRID)


def test_corr_pyramid(benchmark):
    fmap2 = corr_block.inputs(GRID)[1]
    assert len(watch(benchmark, lambda: ops.corr_pyramid(fmap2, 4))) == 4


def test_bilinear_sample(benchmark):
    fmap, _, coords = corr_block.inputs(GRID)
    assert watch(benchmark, lambda: ops.bilinear_sample(fmap, coords[-1])).shape == fmap.shape


def test_update_step(benchmark):
    block = BasicUpdateBlock(324).eval()
    net, inp, corr, flow = (_channels_last(1, channels, *GRID) for channels in (128, 128, 324, 2))
    with torch.inference_mode():
        context = block.begin(inp)
    assert watch(benchmark, lambda: block(net, context, corr, flow))[0].shape == net.shape


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convex_upsample(benchmark, layout):
    flow, mask = torch.randn(1, 2, *GRID), torch.randn(1, 576, *GRID).contiguous(memory_format=layout)
    assert watch(benchmark, lambda: convex_upsample(flow, mask)).shape == (1, 2, 8 * GRID[0], 8 * GRID[1])


@pytest.mark.parametrize("small", [False, True])
def test_raft(benchmark, small):
    model, images = RAFT(small, memory="on_the_fly").eval(), [255 * torch.rand(1, 3, 128, 192) for _ in range(2)]
    assert watch(benchmark, lambda: model(*images, iters=2, test_mode=True))[1].shape == (1, 2, 128, 192)


def test_encoder(benchmark):
    encoder, image = BasicEncoder(256, "instance").eval(), _channels_last(1, 3, 128, 192)
    assert watch(benchmark, lambda: encoder(image)).shape == (1, 256, 16, 24)


@torch.no_grad()
def test_the_plain_model_is_the_same_model():
    model = RAFT().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    images = [255 * torch.rand(2, 3, 128, 160) for _ in range(2)]
    expected = model(*images, iters=3, test_mode=True)
    for every_step in (True, False):
        for actual, truth in zip(PlainRAFT(model, every_step)(*images, iters=3), expected, strict=True):
            torch.testing.assert_close(actual, truth, rtol=0, atol=5e-4)
