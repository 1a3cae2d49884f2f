"""The roofline of corr_lookup: what it counts, and that every way to multiply is checked before it is timed."""

import pytest
import torch

from benchmarks import corr_lookup, timing
from daflow_ext import ops


def test_bytes_and_arithmetic_of_a_lookup():
    """1080p at an eighth: 32400 queries; the pyramid has 42900 pixels."""
    grid = (135, 240)
    assert corr_lookup.flop(grid) == 32400 * 4 * 100 * 2 * 256
    features, coords, samples = (32400 + 42900) * 256, 32400 * 2 * 4, 32400 * 324
    assert corr_lookup.least_bytes(grid, torch.float16, torch.float32) == 2 * features + coords + 4 * samples
    assert corr_lookup.least_bytes(grid, torch.float32, torch.float16) == 4 * features + coords + 2 * samples


@pytest.fixture
def ceilings(monkeypatch):
    monkeypatch.setattr(timing, "copy_ceiling", lambda device: 1e9)
    monkeypatch.setattr(corr_lookup, "_product_ceiling", lambda product, device: 1e12)


def test_every_product_is_timed(ceilings):
    records = list(corr_lookup.roofline_records((5, 6), "cpu"))
    cases = [record.case.removeprefix("lookup, 5x6, ") for record in records]
    assert {"float32", "tf32", "float16", "bfloat16", "tf32, random flow", "float16, tiles of 8 x 16"} <= set(cases)
    assert "float32, tiles of 8 x 16" not in cases  # takes no tensor cores
    moved = corr_lookup.least_bytes((5, 6), torch.float16, torch.float32)
    record = records[cases.index("float16")]  # memory is the bound: share = bytes / bandwidth / time
    assert record.value == pytest.approx(100 * moved / 1e9 / (record.details["us"] * 1e-6), rel=0.01)
    assert not torch.backends.cuda.matmul.allow_tf32


def test_tall_tiles_are_on_while_their_cases_are_captured(monkeypatch):
    said = []
    monkeypatch.setattr(torch.ops.daflow_ext, "set_tall_tiles", said.append, raising=False)
    for name in ("float16", "float16, tiles of 8 x 16"):
        with corr_lookup._tiles(name, "cuda"):
            said.append(name)
    assert said == ["float16", True, "float16, tiles of 8 x 16", False]


def test_a_wrong_lookup_is_not_timed(ceilings, monkeypatch):
    right = ops.corr_lookup
    monkeypatch.setattr(ops, "corr_lookup", lambda *args, **options: right(*args, **options) + 1e-2)
    with pytest.raises(timing.WrongResultError, match="float32"):
        list(corr_lookup.roofline_records((5, 6), "cpu"))
