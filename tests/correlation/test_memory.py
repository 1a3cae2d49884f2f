"""memory="auto": the rule, the limits of free memory, one log line."""

import logging

import pytest
import torch

from daflow_ext.correlation import CorrBlock, memory

CPU = torch.device("cpu")


def choose(height, width, free=2**40, monkeypatch=None, **changes):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    options = {
        "radius": 4,
        "lookups": 12,
        "element_size": 4,
        "training": False,
        "device": CPU,
        "compiled": True,
        **changes,
    }
    levels = [(height >> level) * (width >> level) for level in range(4)]
    return memory.choose(height * width, levels, **options)


def test_small_grids_and_many_lookups_store_the_volume(monkeypatch):
    assert choose(16, 16, monkeypatch=monkeypatch) == "volume"
    assert choose(135, 240, monkeypatch=monkeypatch) == "on_the_fly"
    assert choose(55, 128, lookups=1, monkeypatch=monkeypatch) == "on_the_fly"
    assert choose(55, 128, lookups=1000, monkeypatch=monkeypatch) == "volume"


def test_the_volume_takes_a_part_of_the_free_memory_only(monkeypatch):
    volume = 4 * 256 * (256 + 64 + 16 + 4)
    assert choose(16, 16, free=4 * volume, monkeypatch=monkeypatch) == "volume"
    assert choose(16, 16, free=4 * volume - 4, monkeypatch=monkeypatch) == "on_the_fly"
    assert choose(16, 16, free=4 * volume, training=True, monkeypatch=monkeypatch) == "on_the_fly"


def test_the_reference_stores_whatever_fits(monkeypatch):
    assert choose(135, 240, compiled=False, monkeypatch=monkeypatch) == "volume"
    assert choose(135, 240, compiled=False, free=2**30, monkeypatch=monkeypatch) == "on_the_fly"


def test_free_memory_is_plausible():
    assert 2**24 < memory.free_bytes(CPU) < 2**50
    assert memory.free_bytes(torch.device("meta")) == 0


@pytest.mark.gpu
def test_free_memory_of_a_gpu():
    assert 0 < memory.free_bytes(torch.device("cuda")) <= torch.cuda.get_device_properties(0).total_memory


def test_the_decision_is_logged_once_per_grid(caplog, monkeypatch):
    memory.log_once.cache_clear()
    fmap = torch.zeros(1, 4, 11, 13)
    with caplog.at_level(logging.INFO, logger="daflow_ext"):
        blocks = [CorrBlock(fmap, fmap, backend="reference") for _ in range(3)]
    lines = [record.getMessage() for record in caplog.records if "memory='auto'" in record.getMessage()]
    assert len(lines) == 1
    assert "(1, 11, 13)" in lines[0]
    assert blocks[0].memory in lines[0]
