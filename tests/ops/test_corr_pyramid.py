"""corr_pyramid: every backend and instruction set against tables, the reference and the op's contract."""

import pytest
import torch
import torch.nn.functional as F

from daflow_ext import ops, reference
from tests.ops.common import (
    COMPILED,
    IMPLEMENTATIONS,
    accumulator,
    assert_all_close,
    assert_same_bits_for_any_threads,
    gradients,
    lay_out,
    poisoned_memory,
    ramp_like,
)

OP = torch.ops.daflow_ext.corr_pyramid.default
BACKWARD = torch.ops.daflow_ext.corr_pyramid_backward.default

# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
def test_levels_computed_by_hand(on):
    fmap2 = torch.arange(25.0).reshape(1, 1, 5, 5)  # x + 5 y; the last row and column are dropped
    levels = on("corr_pyramid", fmap2, 4)
    assert torch.equal(levels[0], fmap2)
    assert levels[1].tolist() == [[[[3, 5], [13, 15]]]]
    assert levels[2].tolist() == [[[[9]]]]
    assert levels[3].shape == (1, 1, 0, 0)


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
def test_gradient_computed_by_hand(on):
    fmap2 = torch.zeros(1, 1, 5, 5)
    upstream = [
        torch.full((1, 1, 5, 5), 1.0),
        torch.tensor([[[[4.0, 8.0], [12.0, 16.0]]]]),
        torch.full((1, 1, 1, 1), 32.0),
    ]
    *_, grad = gradients(lambda fmap: on("corr_pyramid", fmap, 3), fmap2, upstream=upstream)
    # 1 everywhere, a quarter of level 1 and a sixteenth of level 2 where they cover the pixel
    a, b, c, d = 1 + 1 + 2, 1 + 2 + 2, 1 + 3 + 2, 1 + 4 + 2
    assert grad[0, 0].tolist() == [[a, a, b, b, 1], [a, a, b, b, 1], [c, c, d, d, 1], [c, c, d, d, 1], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_level_is_rounded_once(on, dtype):
    fmap2 = torch.randint(-127, 128, (2, 5, 16, 24)).to(dtype)  # sums of 64 integers are exact in float32
    for level, result in enumerate(on("corr_pyramid", fmap2, 4)):
        exact = F.avg_pool2d(fmap2.double(), 2**level) if level else fmap2.double()
        assert torch.equal(result, exact.to(dtype))


@pytest.mark.parametrize("on", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("out_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_levels_in_another_dtype(on, dtype, out_dtype):
    """Pooled in float32 at least and rounded once; the gradient has the dtype of fmap2."""
    on.skip_unless(out_dtype)
    fmap2 = torch.randint(-127, 128, (2, 5, 16, 24)).to(dtype)
    *levels, grad = gradients(lambda fmap: on("corr_pyramid", fmap, 4, out_dtype=out_dtype), fmap2)
    for level, result in enumerate(levels):
        exact = F.avg_pool2d(fmap2.double(), 2**level) if level else fmap2.double()
        assert torch.equal(result, exact.to(out_dtype))
        assert result.is_contiguous(memory_format=torch.channels_last)
    leaf = fmap2.double().requires_grad_()
    truth = reference.corr_pyramid(leaf, 4)
    torch.autograd.backward(truth, [ramp_like(level).double() for level in levels])
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, leaf.grad.to(dtype))


# ---- against the reference ------------------------------------------------------------------------------------------

CASES = {
    # batch, channels, height, width, levels, layout
    "raft": (1, 256, 23, 16, 4, "contiguous"),
    "channels last": (2, 128, 16, 12, 4, "channels_last"),
    "channel tail": (2, 70, 13, 37, 4, "contiguous"),
    "one channel": (3, 1, 9, 11, 3, "contiguous"),
    "three channels": (2, 3, 12, 70, 3, "channels_last"),
    "wider than a tile": (1, 5, 8, 131, 4, "contiguous"),
    "many levels": (1, 17, 64, 70, 7, "contiguous"),
    "levels down to nothing": (2, 20, 9, 33, 8, "channels_last"),
    "one pixel": (2, 6, 1, 1, 2, "contiguous"),
    "one row": (2, 6, 1, 40, 3, "contiguous"),
    "one level": (2, 33, 7, 5, 1, "contiguous"),
    "sliced": (2, 40, 11, 23, 3, "sliced"),
    "sliced channels last": (2, 40, 11, 23, 3, "sliced_channels_last"),
    "transposed": (2, 19, 10, 21, 3, "transposed"),
    "expanded": (3, 8, 10, 21, 3, "expanded"),
    "empty batch": (0, 8, 10, 12, 3, "contiguous"),
    "no rows": (2, 8, 0, 12, 3, "contiguous"),
    "no channels": (2, 0, 8, 12, 3, "contiguous"),
}


@pytest.mark.parametrize("on", COMPILED, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_reference(on, case, dtype):
    on.skip_unless(dtype)
    *shape, levels, layout = case
    fmap2 = lay_out(torch.randn(shape).to(dtype), layout)
    results = gradients(lambda fmap: on("corr_pyramid", fmap, levels), fmap2)
    wide = accumulator(dtype)
    upstream = [ramp_like(level).to(wide) for level in results[:-1]]
    truths = gradients(lambda fmap: reference.corr_pyramid(fmap, levels), fmap2.to(wide), upstream=upstream)
    assert all(result.dtype == dtype for result in results)
    assert_all_close(results, truths, dtype)
    for level in results[:-1]:
        assert level.numel() == 0 or level.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("on", COMPILED, indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "sliced_channels_last", "expanded"])
def test_gradients_of_any_strides(on, layout):
    fmap2 = torch.randn(2, 37, 11, 45)
    upstream = [lay_out(torch.randn_like(level), layout) for level in reference.corr_pyramid(fmap2, 5)]
    results = gradients(lambda fmap: on("corr_pyramid", fmap, 5), fmap2, upstream=upstream)
    assert_all_close(results, gradients(lambda fmap: reference.corr_pyramid(fmap, 5), fmap2, upstream=upstream))


@pytest.mark.parametrize("on", COMPILED, indirect=True)
def test_levels_without_a_gradient(on):
    fmap2 = torch.randn(1, 5, 12, 20, requires_grad=True)
    (grad,) = torch.autograd.grad(on("corr_pyramid", fmap2, 3)[1].sum(), fmap2)
    assert torch.equal(grad, torch.full_like(grad, 0.25))


# ---- autograd, compile ----------------------------------------------------------------------------------------------


def test_gradcheck(on):
    fmap2 = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda fmap: tuple(on("corr_pyramid", fmap, 3)), fmap2)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 5, 9, 12), "contiguous"),
        ((2, 5, 9, 12), "sliced"),
        ((2, 3, 1, 1), "channels_last"),
        ((1, 1, 4, 4), "contiguous"),
        ((0, 3, 4, 4), "contiguous"),
    ],
)
def test_opcheck(shape, layout):
    fmap2 = lay_out(torch.randn(shape), layout).requires_grad_()
    torch.library.opcheck(OP, (fmap2, 3))
    torch.library.opcheck(BACKWARD, ([torch.randn(level.shape) for level in reference.corr_pyramid(fmap2, 3)],))


def test_compiles_without_graph_breaks(on):
    def model(fmap2):
        return [level.relu() for level in on("corr_pyramid", 2 * fmap2, 3)]

    fmap2 = torch.randn(2, 6, 9, 10)
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), fmap2)
    assert_all_close(compiled, gradients(model, fmap2))


# ---- determinism, memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", COMPILED, indirect=True)
def test_same_bits_from_run_to_run_and_for_any_number_of_threads(on):
    fmap2 = torch.randn(2, 130, 37, 70)
    assert_same_bits_for_any_threads(lambda: gradients(lambda fmap: on("corr_pyramid", fmap, 4), fmap2))


@pytest.mark.parametrize("on", COMPILED, indirect=True)
def test_every_output_element_is_written(on):
    fmap2 = torch.randn(2, 21, 13, 39)
    with poisoned_memory("corr_pyramid", "corr_pyramid_backward"):
        results = gradients(lambda fmap: on("corr_pyramid", fmap, 5), fmap2)
    assert all(result.isfinite().all() for result in results)


def test_offsets_beyond_31_bits(on):
    """Images 2^31 elements apart, of which only the pages in use are ever touched."""
    near = torch.randn(2, 8, 5, 6).bfloat16()
    far = torch.empty(2**31 + 512, dtype=torch.bfloat16).as_strided(near.shape, (2**31 + 64, 1, 48, 8)).copy_(near)
    for result, expected in zip(on("corr_pyramid", far, 2), on("corr_pyramid", near, 2), strict=True):
        assert torch.equal(result, expected)


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmap2", "levels", "error", "message"),
    [
        (torch.zeros(3, 4, 4), 4, ValueError, r"fmap2 must be \[B, C, H, W\], got float32\[3, 4, 4\] on cpu"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int32), 4, TypeError, r"got int32\[1, 3, 4, 4\] on cpu"),
        ([1.0], 4, TypeError, "fmap2 must be a tensor, got list"),
        (torch.zeros(1, 3, 4, 4), 0, ValueError, "num_levels must be an integer from 1 to 62, got 0"),
        (
            torch.zeros(1, 3, 4, 4),
            2**62,
            ValueError,
            "num_levels must be an integer from 1 to 62, got 4611686018427387904",
        ),
        (torch.zeros(1, 3, 4, 4), 2.0, ValueError, r"num_levels must be an integer from 1 to 62, got 2\.0"),
    ],
)
def test_bad_input_says_what_came_and_what_was_expected(fmap2, levels, error, message):
    with pytest.raises(error, match=message):
        ops.corr_pyramid(fmap2, levels)


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (OP, (torch.zeros(3, 4, 4), 4), r"fmap2 must be \[B, C, H, W\], got \[3, 4, 4\]"),
        (OP, (torch.zeros(1, 3, 4, 4), 0), "num_levels must be 1 to 62, got 0"),
        (OP, (torch.zeros(1, 3, 4, 4), 2**40), "num_levels must be 1 to 62, got 1099511627776"),
        (OP, (torch.zeros(1, 3, 4, 4, dtype=torch.int64), 2), "expected a tensor of float32"),
        (BACKWARD, ([],), "non-empty list"),
        (BACKWARD, ([torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 3, 2)],), r"grads\[1\] is \[1, 3, 3, 2\]"),
        (BACKWARD, ([torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2).double()],), "in one dtype"),
    ],
)
def test_direct_calls_raise_instead_of_reading_out_of_bounds(op, args, message):
    with pytest.raises(RuntimeError, match=message):
        op(*args)
