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
    lookup = 16 * 24 * 4 * 100 * 2 * 32 / 1e9  # queries, levels, corners, multiply and add, channels
    assert [r.details["gflop"] / lookup for r in records] == pytest.approx([12, 12, 1, 2 * 3], rel=0.02)
    moved = 4 * 16 * 24 * (2 * 32 + 12 * (2 + 324)) / 1e6  # both maps, then coordinates and windows
    assert records[0].details["megabytes"] == pytest.approx(moved, abs=1e-4)
    for record in records:  # both sides' shares are of one work
        work = record.details["ms"] * record.details["roofline_percent"]
        plain = record.details.get("plain", record.details)
        assert plain["ms"] * plain["roofline_percent"] == pytest.approx(work, rel=0.05)
        assert work > 0


def test_a_wrong_block_is_not_timed(small, monkeypatch):
    monkeypatch.setattr(corr_block, "CorrBlock", lambda *args, **options: lambda coords: torch.zeros(1, 324, *GRID))
    with pytest.raises(timing.WrongResultError):
        list(corr_block.forward_records(GRID, "cpu", repeats=1))


def test_an_opponent_that_fails_or_is_wrong_is_left_out(capsys):
    def broken():
        raise RuntimeError("no kernel image is available")

    opponents = {"good": lambda: torch.ones(3), "wrong": lambda: torch.zeros(3), "broken": broken}
    assert list(corr_block._right(opponents, lambda: torch.ones(3))) == ["good"]
    said = capsys.readouterr().out
    assert "wrong is left out" in said
    assert "broken is left out: no kernel image" in said


def test_gradients_are_compared_away_from_whole_pixels_of_every_level():
    coords = torch.tensor([3.0, 2.50001, 4.00005, 8.0003, 7.5])  # level 3: 8.0003 is 1.00004, 7.5 is 0.94
    assert corr_block._steady(coords).tolist() == [0, 1, 0, 0, 1]


def test_the_crossover_has_a_record_per_dtype(small):
    records = list(corr_block.crossover_records(GRID, 12, "cpu"))
    assert [record.unit for record in records] == ["x volume"] * 2
    assert records[0].details["gflop"] == pytest.approx(2 * 32 * 384 * (384 + 96 + 24 + 6) / 1e9, abs=1e-4)  # all pairs
    assert records[0].details["volume_bytes"] == 4 * 16 * 24 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3)


@pytest.mark.parametrize("block", [CorrBlock, PlainCorrBlock])
def test_build_and_lookup(benchmark, small, block):
    fmap1, fmap2, coords = corr_block.inputs(GRID)
    with torch.inference_mode(), timing.threads(1):
        benchmark.pedantic(lambda: block(fmap1, fmap2)(coords[0]), rounds=3, warmup_rounds=1)
