"""The tools behind every published number."""

import importlib
import json

import pytest
import torch

from benchmarks import run, timing


def test_the_gate_refuses_what_is_wrong():
    truth = torch.arange(6.0).reshape(2, 3)
    assert timing.gate("good", truth + 1e-6, truth, atol=1e-5) == pytest.approx(1e-6, abs=5e-7)
    for wrong in (truth + 1e-3, truth.clone().fill_(float("nan")), truth.T):
        with pytest.raises(timing.WrongResultError, match="not timed"):
            timing.gate("bad", wrong, truth, atol=1e-5)


def test_candidates_take_turns():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.interleaved(ways, repeats=3, warmup=1)
    assert calls == ["a", "b", "a", "b", "a", "b", "a", "b"]
    assert times["a"].repeats == 3
    assert 0 <= times["a"].p20 <= times["a"].median <= times["a"].p80


def test_quantiles():
    times = timing.Timing.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (times.p20, times.median, times.p80) == (2.0, 3.5, 5.0)
    assert timing.Timing.of([2.0]) == timing.Timing(2.0, 2.0, 2.0, 1)


def test_records_know_whether_the_goal_is_met():
    assert timing.Record("op", "case", 3.0, "x", goal=3.0).met
    assert not timing.Record("op", "case", 6.0, "%", goal=5.0, at_least=False).met
    assert timing.Record("op", "case", 1.0, "s").met is None
    assert "MISSED" in timing.Record("op", "case", 2.9, "x", goal=3.0).line()
    fields = json.loads(timing.Record("op", "case", 3.5, "x", goal=3.0, details={"ms": 2.5}).json())
    assert fields["ms"] == 2.5
    assert fields["met"] is True


def allocate(mebibytes: int, kept: int):
    """For peak_bytes: something large that lives before the call, and something that lives during it."""
    before = torch.ones(kept * 2**18)

    def call():
        return (torch.ones(mebibytes * 2**18) + before[0]).sum()

    torch.ones(2**18).sum()
    return call


def test_peak_memory_counts_the_call_only():
    peak = timing.peak_bytes("tests.benchmarks.test_timing:allocate", mebibytes=40, kept=200)
    assert 2 * 40 <= peak / 2**20 <= 2 * 40 + 8  # the ones and their sum with a scalar


def test_the_runner_writes_json_lines_and_reports_wrong_results(tmp_path, monkeypatch, capsys):
    def good(quick, device):
        yield timing.Record("good", f"quick={quick} {device}", 2.0, "x")

    def bad(quick, device):
        timing.gate("bad", torch.ones(1), torch.zeros(1), atol=0.5)
        yield timing.Record("bad", "never", 1.0, "x")

    def broken(quick, device):
        yield timing.Record("broken", "before", 3.0, "x")
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(run, "_benchmarks", lambda: {"bad": bad, "broken": broken, "good": good})
    monkeypatch.setattr(run, "_measure_apart", run._measure)  # whose process would not know them
    target = tmp_path / "out.jsonl"
    assert run.main(["--quick", "--json", str(target)]) == 1
    before, line = target.read_text().splitlines()
    fields = json.loads(line)
    assert json.loads(before)["op"] == "broken"
    assert (fields["op"], fields["case"], fields["value"]) == ("good", "quick=True cpu", 2.0)
    assert {"date", "torch", "cpu", "commit"} <= fields.keys()
    said = capsys.readouterr().err
    assert "WRONG RESULT: bad" in said
    assert "no kernel image" in said
    assert run.main(["--op", "good"]) == 0


def test_records_are_written_before_the_next_op(tmp_path, monkeypatch):
    target = tmp_path / "out.jsonl"

    def good(quick, device):
        yield timing.Record("good", "case", 2.0, "x")

    def killed(quick, device):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(run, "_benchmarks", lambda: {"good": good, "killed": killed})
    monkeypatch.setattr(run, "_measure_apart", run._measure)
    with pytest.raises(KeyboardInterrupt):
        run.main(["--json", str(target)])
    assert json.loads(target.read_text())["op"] == "good"


def test_each_of_several_ops_has_a_process_of_its_own(monkeypatch, capfd):
    """What an op leaves behind, an allocator that is warm, would decide about the next."""
    apart = []
    monkeypatch.setattr(run, "_measure_apart", lambda op, *_: (apart.append(op) or [], True))
    assert run.main(["--quick", "--op", "qk_norm", "softargmax_flow"]) == 0
    assert apart == ["qk_norm", "softargmax_flow"]
    monkeypatch.undo()
    assert run._measure_apart("no such op", True, "cpu") == ([], False)
    assert "KeyError: 'no such op'" in capfd.readouterr().err


@pytest.mark.parametrize("error", [ModuleNotFoundError, OSError, RuntimeError])  # of libraries made for another torch
def test_what_needs_a_missing_package_is_left_out(monkeypatch, capsys, error):
    def load(name, right=importlib.import_module):
        if name == "benchmarks.daflow":
            raise error("no such thing")
        return right(name)

    run._benchmarks.cache_clear()
    monkeypatch.setattr(run.importlib, "import_module", load)
    assert "corr_lookup" in run._benchmarks()
    assert "daflow" not in run._benchmarks()
    assert "daflow           is left out: no such thing" in capsys.readouterr().err
    run._benchmarks.cache_clear()


def test_saving_keeps_the_records_of_other_ops(tmp_path):
    file = tmp_path / "results.jsonl"
    old = [json.dumps({"op": op, "value": 1}) for op in ("model", "corr_block", "model")]
    file.write_text("".join(f"{line}\n" for line in old))
    assert run._of_other_ops(file, [json.dumps({"op": "corr_block", "value": 2})]) == [old[0], old[2]]
    assert run._of_other_ops(tmp_path / "none.jsonl", old) == []
