"""The roofline: work counted by hand, and the share of it in every record that states a time."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks import corr_lookup, roofline, timing
from daflow_ext import ops, reference
from daflow_ext.models import RAFT

CEILINGS = roofline.Ceilings(copy=1e9, product=1e11)


def test_the_slower_of_the_two_ceilings_bounds():
    assert roofline.Work(flop=10**11, moved=10).percent(2.0, CEILINGS) == pytest.approx(50)
    assert roofline.Work(flop=10, moved=10**9).percent(4.0, CEILINGS) == pytest.approx(25)
    details = roofline.Work(flop=10**11, moved=2 * 10**9).details(timing.Timing(4.0, 3.0, 5.0, 7), CEILINGS)
    assert details == {
        "ms": 4000, "ms_p20": 3000, "ms_p80": 5000, "repeats": 7, "roofline_percent": 50,
        "gflop": 100, "megabytes": 2000, "product_gflop_s": 100, "copy_gb_s": 1,
    }  # fmt: skip


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_inputs_weights_and_results_move_once(mode):
    """Nothing for the activations between; only what is read of a larger tensor, and that once."""
    image, wide = torch.randn(1, 3, 10, 12), torch.randn(100, 10)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
    with mode():
        work = roofline.count(lambda: layers(image))
        product = roofline.count(lambda: [wide[:50] @ torch.ones(10, 2), wide[40:60].T @ torch.ones(20, 3)])
        several = roofline.count(lambda: wide[:60].sum() + wide[20:].sum() + wide.T[:, :9].sum())
        parts = roofline.count(lambda: torch.cat([wide[:10], wide[90:]]))
    weights = 8 * 27 + 8 + 2 * 8 + 2
    assert work == roofline.Work(2 * 120 * (8 * 27 + 2 * 8), 4 * (3 * 120 + weights + 2 * 120))
    assert product == roofline.Work(2 * 50 * 10 * 2 + 2 * 10 * 20 * 3, 4 * (70 * 10 + 50 * 2 + 10 * 3))
    assert several.moved == 4 * (100 * 10 + 1)
    assert parts.moved == 2 * 4 * 20 * 10


def test_attentions_are_counted_by_whichever_operator_runs():
    q, k = torch.randn(1, 2, 10, 16), torch.randn(1, 2, 30, 16)
    flop = 2 * 2 * (2 * 10 * 30 * 16)  # heads, two products
    with torch.no_grad():
        work = roofline.count(lambda: F.scaled_dot_product_attention(q, k, k))
    assert work == roofline.Work(flop, 4 * 2 * 16 * (10 + 30 + 10))  # k and v are one tensor here
    streams = [(1, 5, 1, 2, 16), (1, 5, 1, 2, 16)]  # [B, F, T, heads, d]
    assert roofline._streams(streams, [*streams, (1, 1, 20, 2, 16)], streams) == flop


def test_a_lookup_and_its_gradients():
    """1080p at an eighth would have 32400 queries and a pyramid of 42900 pixels; here 30 and 30 + 6 + 1 + 0."""
    for dtype, size in ((torch.float32, 4), (torch.float16, 2)):
        fmap1, pyramid, coords = corr_lookup.arguments((5, 6), "cpu", dtype)
        work = roofline.count(lambda case=(fmap1, pyramid, coords): ops.corr_lookup(*case, 4))
        assert work == roofline.Work(30 * 4 * 100 * 2 * 256, size * 256 * (30 + 37) + 4 * 30 * (2 + 324))
    case = corr_lookup.arguments((5, 6), "cpu", torch.float32)
    upstream = torch.randn(1, 324, 5, 6)
    for needed, written in ((("coords",), 2 * 30), (("fmap1", "coords"), (256 + 2) * 30)):
        gradients = roofline.count(lambda needed=needed: corr_lookup.gradients(case, upstream, needed))
        assert gradients.flop == len(needed) * work.flop
        assert gradients.moved == 4 * (256 * (30 + 37) + 30 * (2 + 324) + written)


@torch.inference_mode()
def test_a_model_is_the_sum_of_its_parts():
    """Another iteration adds one update and one lookup, and no byte to read."""
    raft, images = RAFT(small=True, memory="on_the_fly").eval(), [255 * torch.rand(1, 3, 64, 96) for _ in range(2)]
    works = [roofline.count(lambda iters=iters: raft(*images, iters, test_mode=True)) for iters in (1, 2, 4)]
    steps = [works[1].flop - works[0].flop, works[2].flop - works[1].flop]
    lookup = 8 * 12 * 4 * (2 * 3 + 2) ** 2 * 2 * 128
    update = 2 * 8 * 12 * sum(p.numel() for name, p in raft.update_block.named_parameters() if name.endswith("weight"))
    assert steps[1] == 2 * steps[0]
    assert 0.7 * (update + lookup) < steps[0] <= update + lookup  # the context's part of the GRU is kept between steps
    parameters = 4 * sum(p.numel() for p in raft.parameters())
    least = parameters + 4 * 64 * 96 * (3 + 3 + 2)
    assert least < works[0].moved < 1.2 * least
    assert works[0].moved == works[2].moved


def test_ceilings_are_measured_once_and_as_the_cpu_multiplies():
    roofline.product_ceiling.cache_clear()
    with timing.threads(1):
        first = roofline.Ceilings.of("cpu")
        assert roofline.Ceilings.of("cpu") == first
        assert roofline.Ceilings.of("cpu", torch.float16) == first  # no CPU has a fast product of float16
    assert roofline.product_ceiling.cache_info().misses == 1
    assert 1e9 < first.copy < 1e12
    assert 1e9 < first.product < 1e13


def test_the_count_changes_nothing():
    fmap1, pyramid, coords = corr_lookup.arguments((5, 6), "cpu", torch.float32)
    found = []
    roofline.count(lambda: found.append(ops.corr_lookup(fmap1, pyramid, coords, 4)))
    torch.testing.assert_close(found[0], reference.corr_lookup(fmap1, pyramid, coords, 4))
