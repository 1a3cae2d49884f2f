"""The benchmarks of st_attention and softargmax_flow run, gate included, on a size that takes no time."""

import pytest
import torch

from benchmarks import softargmax_flow, st_attention, timing


def test_attention_beside_pytorch(monkeypatch):
    monkeypatch.setattr(st_attention, "HEADS", 2)
    monkeypatch.setattr(st_attention, "TEXT", 5)
    records = list(st_attention.dense_records("tiny", 2, 12, "cpu"))
    cases = [record.case for record in records]
    for direction in ("forward", "backward"):
        for name in ("ours", "sdpa", "default with cat"):
            assert f"{direction}, tiny x 2, N=58, {name}" in cases
    assert {record.unit for record in records} == {"TFLOP/s", "x sdpa"}
    (window,) = st_attention.window_records(3, 8, "cpu", heads=2)
    assert window.unit.startswith("x dense")


def test_softargmax_beside_the_chain():
    records = list(softargmax_flow.forward_records((4, 6), 16, "cpu"))
    assert [record.case.split(", 4x6")[0] for record in records] == ["chain", "ours", "ours, details", "ours, local"]
    assert softargmax_flow.backward_record((4, 6), 16, "cpu").value > 0


def test_a_wrong_attention_is_not_timed(monkeypatch):
    monkeypatch.setattr(st_attention.ops, "st_attention", lambda q, k, v, **_: [torch.zeros_like(x) for x in q])
    with pytest.raises(timing.WrongResultError, match="ours"):
        list(st_attention.dense_records("tiny", 2, 4, "cpu"))
