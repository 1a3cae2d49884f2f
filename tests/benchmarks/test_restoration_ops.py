"""The benchmarks of st_attention and softargmax_flow run, gate included, on a size that takes no time."""

import pytest
import torch

from benchmarks import qk_norm, roofline, softargmax_flow, st_attention, timing


@pytest.fixture(autouse=True)
def _little_text(monkeypatch):
    monkeypatch.setattr(st_attention, "TEXT", 5)


def test_attention_beside_pytorch(monkeypatch):
    monkeypatch.setattr(roofline, "copy_ceiling", lambda device: 1e15)
    monkeypatch.setattr(roofline, "product_ceiling", lambda *_: 1e12)
    records = list(st_attention.dense_records("tiny", 2, 12, "cpu", flex=False, heads=2))
    cases = [record.case for record in records]
    for direction in ("forward", "backward"):
        for name in ("ours", "sdpa", "sdpa with cat", "fastest of ours"):
            assert f"{direction}, tiny x 2, N=58, {name}" in cases
    assert {record.unit for record in records} == {"TFLOP/s", "x sdpa"}
    assert records[0].details["roofline_percent"] == pytest.approx(100 * records[0].value, abs=1e-2)
    (window,) = st_attention.window_records(3, 8, "cpu", heads=2, flex=False)
    assert window.unit.startswith("x dense")
    pairs = 7 * (2 * 8 + 5) ** 2  # of three frames, the middle one sees all and the others two
    assert window.details["gflop"] == pytest.approx(4 * pairs * 64 * 2 / 1e9, abs=1e-4)


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
    product = 2 * 24 * 24 * (16 + 2)  # scores, and the mean of the positions
    assert all(record.details["gflop"] == round(product / 1e9, 4) for record in records)
    backward = softargmax_flow.backward_record((4, 6), 16, "cpu")
    assert backward.value > 0
    assert backward.details["chain"]["roofline_percent"] > 0


def test_a_wrong_attention_is_not_timed(monkeypatch):
    monkeypatch.setattr(st_attention.ops, "st_attention", lambda q, k, v, **_: [torch.zeros_like(x) for x in q])
    with pytest.raises(timing.WrongResultError, match="ours"):
        list(st_attention.dense_records("tiny", 2, 4, "cpu", flex=False, heads=2))


@pytest.mark.parametrize("way", ["chain", "details", "ours", "local"])
def test_no_way_of_softargmax_is_timed_if_wrong(monkeypatch, way):
    right, right_chain = softargmax_flow.ops.softargmax_flow, softargmax_flow.chain

    def wrong(*arguments, mode="global", details=False, backend="auto", **options):
        found = right(*arguments, mode=mode, details=details, backend=backend, **options)
        asked = "local" if mode == "local" else "details" if details else "ours"
        if asked != way or backend == "reference":
            return found
        return found._replace(flow=found.flow + 1) if details else found + 1

    monkeypatch.setattr(softargmax_flow.ops, "softargmax_flow", wrong)
    if way == "chain":  # the truth is the same chain in double precision
        shift = {torch.float32: 1, torch.float64: 0}
        monkeypatch.setattr(softargmax_flow, "chain", lambda q, *rest: right_chain(q, *rest) + shift[q.dtype])
    with pytest.raises(timing.WrongResultError, match=way):
        list(softargmax_flow.forward_records((4, 6), 16, "cpu"))


def test_every_stream_of_qk_norm_is_checked(monkeypatch):
    right = qk_norm.ops.qk_norm
    records = list(qk_norm.size_records("tiny", 4, "cpu"))
    assert [record.unit for record in records] == ["% of a copy", "x rms_norm"] * 2
    assert records[0].value == pytest.approx(records[0].details["roofline_percent"], abs=1e-2)
    monkeypatch.setattr(qk_norm.ops, "qk_norm", lambda *args, **options: [*right(*args, **options)[:5], torch.zeros(1)])
    with pytest.raises(timing.WrongResultError, match="ours"):
        list(qk_norm.size_records("tiny", 4, "cpu"))
