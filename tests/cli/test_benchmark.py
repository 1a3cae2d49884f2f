"""``daflow benchmark``: every stage is counted, the sum is the whole."""

import json
import sys

import pytest
import torch

from daflow_ext.models import RAFT
from daflow_ext.models.stages import StageMeter

SMALL = ("--iters", "3", "--repeats", "2", "--size", "64x80", "--backend", "reference")


def table(daflow, *arguments):
    code, text, err = daflow("benchmark", *arguments, "--json")
    assert (code, err) == (0, "")
    result = json.loads(text)
    return result, {row["name"]: row for row in result["stages"]}


def test_raft(daflow, tiny_weights):
    result, stages = table(daflow, "--model", tiny_weights, "--frames", "3", *SMALL)
    assert list(stages) == ["encoders", "correlation", "update", "upsampling", "other", "total"]
    calls = {name: row["calls"] for name, row in stages.items()}
    # two pairs: a block is built and asked three times, updated three times, upsampled at the end
    assert calls == {"encoders": 2, "correlation": 8, "update": 6, "upsampling": 2, "other": 1, "total": 1}
    for unit in ("milliseconds", "cpu_seconds"):
        parts = [row[unit] for name, row in stages.items() if name != "total"]
        assert sum(parts) == pytest.approx(stages["total"][unit], abs=0.01)
        assert all(part >= -0.01 for part in parts)
    assert (result["weights"], result["size"], result["repeats"]) == ("trained", [64, 80], 2)


def test_daflow(daflow, pipeline_folder):
    _, stages = table(
        daflow, "--model", pipeline_folder, "--frames", "5", "--steps", "2", "--feature-steps", "all", *SMALL
    )
    calls = {name: row["calls"] for name, row in stages.items()}
    # five frames encoded once, two chunks, two steps each, two pairs per chunk and step
    assert calls["vae encode"] == 5
    assert calls["transformer"] == 4
    assert calls["heads"] == calls["encoders"] == calls["upsampling"] == 8
    assert (calls["correlation"], calls["update"]) == (8 * 4, 8 * 3)
    assert "vae decode" not in calls


def test_random_weights_by_name_and_the_table(daflow):
    code, text, err = daflow("benchmark", "--model", "raft-small", *SMALL)
    assert (code, err) == (0, "")
    lines = text.splitlines()
    assert lines[0].startswith("raft-small (random weights, float32), 3 frames of 64x80, 3 iterations; ")
    assert lines[1].split() == ["stage", "calls", "ms", "CPU-s", "peak", "MiB"]
    names = ["encoders", "correlation", "update", "upsampling", "other", "total"]
    assert [line.split()[0] for line in lines[2:8]] == names
    if sys.platform == "linux":
        assert lines[8].startswith("most memory held, weights included: ")
        assert int(lines[8].split()[-2]) > 100  # torch alone takes more


def test_the_meter_leaves_no_trace():
    model = RAFT(small=True).eval()
    images = [torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    before = set(vars(model))
    with torch.no_grad():
        plain = model(*images, iters=2, test_mode=True)[1]
        with StageMeter(model, memory=True) as meter:
            measured = model(*images, iters=2, test_mode=True)[1]
    assert torch.equal(plain, measured)
    assert set(vars(model)) == before
    assert meter.stages["update"].calls == 2
    with pytest.raises(RuntimeError, match="stop"), StageMeter(model, memory=False):
        raise RuntimeError("stop")
    assert set(vars(model)) == before


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_taken_before_is_not_counted():
    model = RAFT(small=True).eval()
    images = [torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    large = torch.ones(2**26)  # 256 MB, gone before the block
    del large
    with torch.no_grad(), StageMeter(model, memory=True) as meter:
        model(*images, iters=1, test_mode=True)
        inside = torch.ones(2**25)  # 128 MB, between the stages
        del inside
    assert 0.95 * 2**27 <= meter.total.peak_bytes < 2**27 + 2**26
    assert meter.highest_bytes >= meter.total.peak_bytes
    assert all(stage.peak_bytes < 2**26 for stage in meter.stages.values())


def test_bad_arguments(refused):
    assert "--size must be HEIGHTxWIDTH as 436x1024, got 'large'" in refused("benchmark", "--size", "large")
    assert "--frames must be at least 2, got 1" in refused("benchmark", "--frames", "1")
    assert "--repeats must be at least 1, got 0" in refused("benchmark", "--repeats", "0")
    assert "--threads must be at least 1, got 0" in refused("benchmark", "--threads", "0")
