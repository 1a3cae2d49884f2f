"""The correlation benchmark on a tiny grid: it checks before it times, and pytest-benchmark can watch it."""

import pytest
import torch

from benchmarks import corr_block, timing
from benchmarks.plain import PlainCorrBlock
from daflow_ext.correlation import CorrBlock

GRID = (16, 24)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(corr_block, "CHANNELS", 32)
    monkeypatch.setattr(corr_block, "GOALS", {GRID: 3.0})


def test_every_record_comes_out(small):
    records = [
        *corr_block.forward_records(GRID, "cpu", repeats=1),
        corr_block.lookup_record(GRID, "cpu"),
        corr_block.backward_record(GRID, "cpu", lookups=2),
    ]
    assert len(records) == 4
    assert all(record.value > 0 and record.details["ms"] > 0 for record in records)


def test_a_wrong_block_is_not_timed(small, monkeypatch):
    monkeypatch.setattr(corr_block, "CorrBlock", lambda *args, **options: lambda coords: torch.zeros(1, 324, *GRID))
    with pytest.raises(timing.WrongResultError):
        list(corr_block.forward_records(GRID, "cpu", repeats=1))


@pytest.mark.parametrize("block", [CorrBlock, PlainCorrBlock])
def test_build_and_lookup(benchmark, small, block):
    fmap1, fmap2, coords = corr_block.inputs(GRID)
    with torch.inference_mode(), timing.threads(1):
        benchmark.pedantic(lambda: block(fmap1, fmap2)(coords[0]), rounds=3, warmup_rounds=1)
