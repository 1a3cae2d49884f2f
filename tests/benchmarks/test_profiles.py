"""The profile of a whole model: shares that are sorted, add up, and name what ran."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import profiles
from daflow_ext.models import RAFT


def test_operators_come_with_their_share_the_largest_first(monkeypatch):
    monkeypatch.setattr(profiles, "LEAST_SHARE", 0.0)
    matrix = torch.randn(300, 300)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            (matrix @ matrix).sum()
    records = list(profiles.operator_records("a product", profiled, "cpu"))
    shares = [record.value for record in records]
    assert sum(shares) == pytest.approx(100)
    assert shares == sorted(shares, reverse=True)
    calls = {record.case: record.details["calls"] for record in records}
    assert calls["a product: aten::mm"] == calls["a product: aten::sum"] == 3


def test_stages_of_a_model_add_up(monkeypatch):
    raft, images = RAFT(small=True).eval(), [255 * torch.rand(1, 3, 64, 96) for _ in range(2)]
    call = lambda: raft(*images, 2, test_mode=True)  # noqa: E731
    monkeypatch.setattr(profiles, "_cases", lambda quick, device: [("small", raft, call)])
    found = {record.case: record.value for record in profiles.records(True, "cpu")}
    stages = [found[f"small: {stage}"] for stage in ("encoders", "correlation", "update", "upsampling", "other")]
    assert sum(stages) == pytest.approx(100)
    assert "small: aten::mkldnn_convolution" in found or "small: aten::_slow_conv2d_forward" in found
