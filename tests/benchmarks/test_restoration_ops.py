"""The benchmarks of st_attention and softargmax_flow run, gate included, on a size that takes no time."""

import pytest
import torch

from benchmarks import softargmax_flow, st_attention, timing


@pytest.fixture(autouse=True)
def _little_text(monkeypatch):
    monkeypatch.setattr(st_attention, "TEXT", 5)


def test_attention_beside_pytorch(monkeypatch):
    monkeypatch.setattr(timing, "product_ceiling", lambda dtype, device: 1e12)
    records = list(st_attention.dense_records("tiny", 2, 12, "cpu", flex=False, heads=2))
    cases = [record.case for record in records]
    for direction in ("forward", "backward"):
        for name in ("ours", "sdpa", "sdpa with cat", "fastest of ours"):
            assert f"{direction}, tiny x 2, N=58, {name}" in cases
    assert {record.unit for record in records} == {"TFLOP/s", "x sdpa"}
    assert records[0].details["of_product"] == pytest.approx(records[0].value, abs=1e-4)
    (window,) = st_attention.window_records(3, 8, "cpu", heads=2, flex=False)
    assert window.unit.startswith("x dense")


@pytest.mark.parametrize("error", [RuntimeError, ValueError])  # of PyTorch; of Triton, whose errors are their own
def test_what_does_not_run_here_is_left_out(capsys, error):
    def refuse():
        raise error("No available kernel.\nMore words")

    ways = st_attention.runnable({"good": st_attention.Way(list, []), "bad": st_attention.Way(refuse, [])})
    assert list(ways) == ["good"]
    assert "bad does not run here: No available kernel." in capsys.readouterr().out


def test_math_is_asked_only_where_its_scores_fit(monkeypatch):
    monkeypatch.setattr(st_attention, "MATH_TOKENS", 50)
    streams = [torch.empty(1, 1, tokens, 1, st_attention.WIDTH, device="meta") for tokens in (30, 30)]
    assert "math" not in st_attention.their_ways(streams, streams, streams, flex=False)
    assert "math with cat" in st_attention.their_ways(streams[:1], streams[:1], streams[:1], flex=False)


def test_every_candidate_of_a_gpu_is_timed_online_and_max_free(monkeypatch):
    tuning = pytest.importorskip("daflow_ext.kernels.triton.tuning", exc_type=ImportError)
    calls = []

    def attend(*_, score_bound=None, **options):
        calls.append((tuning.config("st_attention", torch.bfloat16, 64), score_bound, options))

    monkeypatch.setattr(tuning, "architecture", lambda: 90)
    monkeypatch.setattr(st_attention.ops, "st_attention", attend)
    streams = [torch.empty(1, 1, 30, 1, st_attention.WIDTH, device="meta", dtype=torch.bfloat16)]
    for way in st_attention.our_ways(streams, streams, streams, candidates="block lists", window=1).values():
        way.call()
    lists = [config for name, config in tuning.CANDIDATES["st_attention"][90].items() if name.startswith("block lists")]
    expected = [tuning.CONFIGS["st_attention"][90]["half"][64], *lists]
    assert calls == [(c, bound, {"window": 1}) for c in expected for bound in (None, st_attention.SCORE_BOUND)]
    assert len(st_attention.our_ways(streams, streams, streams, candidates=None)) == 2


def test_softargmax_beside_the_chain():
    records = list(softargmax_flow.forward_records((4, 6), 16, "cpu"))
    assert [record.case.split(", 4x6")[0] for record in records] == ["chain", "ours", "ours, details", "ours, local"]
    assert softargmax_flow.backward_record((4, 6), 16, "cpu").value > 0


def test_a_wrong_attention_is_not_timed(monkeypatch):
    monkeypatch.setattr(st_attention.ops, "st_attention", lambda q, k, v, **_: [torch.zeros_like(x) for x in q])
    with pytest.raises(timing.WrongResultError, match="ours"):
        list(st_attention.dense_records("tiny", 2, 4, "cpu", flex=False, heads=2))
