"""The update operator against its equations, and the upsampling against naive loops."""

import pytest
import torch
import torch.nn.functional as F

from daflow_ext.update import BasicUpdateBlock, SmallUpdateBlock, bilinear_upsample, convex_upsample

HEIGHT, WIDTH = 6, 7
DOUBLE = {"dtype": torch.float64}


def _conv(x, layer, padding):
    return F.conv2d(x, layer.weight, layer.bias, padding=padding)


def _gru(h, x, convz, convr, convq, padding):
    z = torch.sigmoid(_conv(torch.cat([h, x], 1), convz, padding))
    r = torch.sigmoid(_conv(torch.cat([h, x], 1), convr, padding))
    q = torch.tanh(_conv(torch.cat([r * h, x], 1), convq, padding))
    return (1 - z) * h + z * q


def _expected_large(block, net, inp, corr, flow):
    encoder, gru, head = block.encoder, block.gru, block.flow_head
    c = _conv(_conv(corr, encoder.convc1, 0).relu(), encoder.convc2, 1).relu()
    f = _conv(_conv(flow, encoder.convf1, 3).relu(), encoder.convf2, 1).relu()
    motion = _conv(torch.cat([c, f], 1), encoder.conv, 1).relu()
    x = torch.cat([inp, motion, flow], 1)
    net = _gru(net, x, gru.convz1, gru.convr1, gru.convq1, (0, 2))
    net = _gru(net, x, gru.convz2, gru.convr2, gru.convq2, (2, 0))
    return net, _conv(_conv(net, head.conv1, 1).relu(), head.conv2, 1)


def _expected_small(block, net, inp, corr, flow):
    encoder, gru, head = block.encoder, block.gru, block.flow_head
    c = _conv(corr, encoder.convc1, 0).relu()
    f = _conv(_conv(flow, encoder.convf1, 3).relu(), encoder.convf2, 1).relu()
    motion = _conv(torch.cat([c, f], 1), encoder.conv, 1).relu()
    net = _gru(net, torch.cat([inp, motion, flow], 1), gru.convz, gru.convr, gru.convq, 1)
    return net, _conv(_conv(net, head.conv1, 1).relu(), head.conv2, 1)


def _inputs(hidden, context, planes):
    shape = (2, -1, HEIGHT, WIDTH)
    net, inp, corr, flow = torch.randn(2, hidden + context + planes + 2, HEIGHT, WIDTH, **DOUBLE).split(
        [hidden, context, planes, 2], dim=1
    )
    return net.tanh().reshape(shape), inp.relu().reshape(shape), corr, 5 * flow


@pytest.mark.parametrize(
    ("block", "expected", "dims"),
    [
        (BasicUpdateBlock, _expected_large, (128, 128)),
        (BasicUpdateBlock, _expected_large, (16, 40)),
        (SmallUpdateBlock, _expected_small, (96, 64)),
    ],
)
def test_update_block_is_its_equations(block, expected, dims):
    planes = 18
    block = block(planes, *dims).double()
    inputs = _inputs(*dims, planes)
    copies = [x.clone() for x in inputs]
    for actual, truth in zip(block(*inputs), expected(block, *inputs), strict=True):
        torch.testing.assert_close(actual, truth, rtol=0, atol=1e-12)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True)), "an input was overwritten"


@pytest.mark.parametrize(("block", "dims"), [(BasicUpdateBlock, (16, 40)), (SmallUpdateBlock, (96, 64))])
def test_steps_that_share_their_context_are_steps_on_their_own(block, dims):
    block = block(18, *dims).double()
    net, inp, corr, flow = _inputs(*dims, 18)
    begun = block.begin(inp)
    shared, alone = net, net
    for _ in range(2):
        shared, alone = block(shared, begun, corr, flow)[0], block(alone, inp, corr, flow)[0]
        torch.testing.assert_close(shared, alone, rtol=0, atol=0)
    x = torch.cat([inp, block.encoder(flow, corr)], dim=1)
    torch.testing.assert_close(block.gru(net, x), block(net, inp, corr, flow)[0], rtol=0, atol=1e-12)


def test_gradients_reach_everything_through_a_shared_context():
    block = BasicUpdateBlock(18, 4, 4).double()
    net, inp, corr, flow = (x[:1, :, :2, :3] for x in _inputs(4, 4, 18))

    def two_steps(net, inp):
        begun = block.begin(inp)
        return block(block(net, begun, corr, flow)[0], begun, corr, flow)

    assert torch.autograd.gradcheck(two_steps, [x.clone().requires_grad_() for x in (net, inp)])
    (two_steps(net, inp)[1]).sum().backward()
    assert all(parameter.grad is not None for name, parameter in block.named_parameters() if "mask" not in name)


def test_mask_head_is_its_equation():
    mask = BasicUpdateBlock(18).double().mask
    net = torch.randn(1, 128, HEIGHT, WIDTH, **DOUBLE)
    expected = 0.25 * _conv(_conv(net, mask[0], 1).relu(), mask[2], 0)
    torch.testing.assert_close(mask(net), expected, rtol=0, atol=1e-12)


LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


@LAYOUTS
@pytest.mark.parametrize("factor", [8, 2])
def test_convex_upsample_is_its_loops(factor, layout):
    height, width = 3, 4
    flow = torch.randn(2, 2, height, width, **DOUBLE)
    mask = torch.randn(2, 9 * factor**2, height, width, **DOUBLE)
    padded = F.pad(flow, (1, 1, 1, 1))
    logits = mask.reshape(2, 9, factor, factor, height, width)
    expected = torch.empty(2, 2, factor * height, factor * width, **DOUBLE)
    for y in range(factor * height):
        for x in range(factor * width):
            row, column = y // factor, x // factor
            weights = logits[:, :, y % factor, x % factor, row, column].softmax(1)
            neighbours = padded[:, :, row : row + 3, column : column + 3].flatten(2)
            expected[:, :, y, x] = factor * torch.einsum("bk,bdk->bd", weights, neighbours)
    mask = mask.contiguous(memory_format=layout)
    torch.testing.assert_close(convex_upsample(flow, mask, factor), expected, rtol=0, atol=1e-12)


def test_convex_upsample_keeps_a_constant_flow_and_stays_in_range():
    mask = 3 * torch.randn(1, 576, 5, 6, **DOUBLE)
    constant = torch.tensor([1.5, -2.0], **DOUBLE)[None, :, None, None].expand(1, 2, 5, 6)
    inside = convex_upsample(constant, mask)[:, :, 8:-8, 8:-8]
    torch.testing.assert_close(inside, 8 * constant[:, :, :1, :1].expand_as(inside), rtol=0, atol=1e-12)
    flow = torch.rand(1, 2, 5, 6, **DOUBLE)
    assert convex_upsample(flow, mask).max() <= 8 * flow.max()


def test_convex_upsample_copies_one_neighbour_when_its_logit_dominates():
    flow = torch.randn(1, 2, 5, 6)
    for k in range(9):
        mask = torch.zeros(1, 9, 64, 5, 6)
        mask[:, k] = 1e4
        moved = F.pad(flow, (1, 1, 1, 1))[:, :, k // 3 : k // 3 + 5, k % 3 : k % 3 + 6]
        expected = 8 * moved.repeat_interleave(8, 2).repeat_interleave(8, 3)
        assert torch.equal(convex_upsample(flow, mask.flatten(1, 2)), expected)


@LAYOUTS
def test_convex_upsample_gradients(layout):
    flow = torch.randn(1, 2, 2, 3, **DOUBLE, requires_grad=True)
    mask = torch.randn(1, 36, 2, 3, **DOUBLE).contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, m: convex_upsample(f, m, 2), (flow, mask))


def test_convex_upsample_says_what_mask_it_needs():
    with pytest.raises(ValueError, match=r"mask must be \[1, 576, 5, 6\].*got \[1, 36, 5, 6\]"):
        convex_upsample(torch.zeros(1, 2, 5, 6), torch.zeros(1, 36, 5, 6))


def test_bilinear_upsample_of_a_linear_flow():
    x = torch.arange(7, **DOUBLE).expand(1, 2, 5, 7)
    expected = 8 * torch.linspace(0, 6, 56, **DOUBLE).expand(1, 2, 40, 56)  # corners stay corners
    torch.testing.assert_close(bilinear_upsample(x), expected, rtol=0, atol=1e-12)
