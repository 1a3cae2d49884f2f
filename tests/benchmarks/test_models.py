"""The benchmarks of whole models: checked before timed, and every time with its share of the roofline."""

import pytest
import torch

from benchmarks import model, timing


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(model, "WIDTH", 128)
    monkeypatch.setattr(model, "ITERS", 2)


def test_every_way_is_timed_with_its_share_of_one_work(small):
    with timing.threads(1):
        records = list(model.time_records(128, "cpu", quick=True))
    assert [record.unit for record in records] == ["x volume", "x plain", "x plain, upsampled once"]
    for record in records:
        other = record.details[record.unit.removeprefix("x ")]
        for time in (record.details, other):
            done = record.details["gflop"] / (time["ms"] / 1e3)
            assert time["roofline_percent"] == pytest.approx(100 * done / record.details["product_gflop_s"], rel=0.01)
            assert time["ms_p20"] <= time["ms"] <= time["ms_p80"]


def test_a_wrong_model_is_not_timed(small, monkeypatch):
    right = model.candidates

    def wrong(*arguments, **options):
        ways = right(*arguments, **options)
        return ways | {"volume": lambda *images: [flow + 0.1 for flow in ways["volume"](*images)]}

    monkeypatch.setattr(model, "candidates", wrong)
    with pytest.raises(timing.WrongResultError, match="volume"):
        list(model.time_records(128, "cpu", quick=True))


def test_the_peak_is_that_of_the_whole_pass(small, monkeypatch):
    peaks = {"on_the_fly": 3 * 2**20, "plain": 12 * 2**20}
    monkeypatch.setattr(timing, "peak_bytes", lambda target, way, **_: peaks[way])
    assert model.memory_record(128, "cpu").value == 25
    case = model.memory_case("plain", height=136)
    assert case().shape == (1, 2, 136, model.WIDTH)


def test_daflow_and_its_stages(monkeypatch):
    daflow = pytest.importorskip("benchmarks.daflow", reason="DA-Flow is built on diffusers; pip install diffusers")
    monkeypatch.setattr(daflow, "ITERS", 2)
    with timing.threads(1):
        whole, *stages = daflow.records(True, "cpu")
    assert 0 < whole.details["roofline_percent"] < 100
    assert 0 < whole.details["reference"]["roofline_percent"] < 100
    values = {record.case.split(": ")[1]: record.value for record in stages}
    assert {"transformer", "update", "other", "total"} <= values.keys()
    for record in stages:
        assert record.details["repeats"] == 3
        assert record.details["ms_p20"] <= record.value <= record.details["ms_p80"] + 1e-4
    pipe = daflow.get_model(daflow.MODEL, pretrained=False)
    frames = torch.zeros(1, 2, 3, 96, 96, dtype=torch.uint8)
    for runs, time in daflow.stage_times(pipe, lambda: pipe(frames, iters=1), repeats=2):
        assert time == timing.Timing.of([stage.cpu_seconds for stage in runs])


def test_wrong_daflow_is_not_timed(monkeypatch):
    daflow = pytest.importorskip("benchmarks.daflow", reason="DA-Flow is built on diffusers; pip install diffusers")
    monkeypatch.setattr(daflow, "ITERS", 2)
    right = daflow.get_model

    class Wrong:
        """Moves the flow by a pixel on the backend that is not the reference."""

        def __init__(self, pipe):
            self.pipe, self.backend = pipe, "auto"

        def to(self, device):
            return self

        def set_backend(self, backend):
            self.backend = backend
            self.pipe.set_backend(backend)

        def __call__(self, *arguments, **options):
            found = self.pipe(*arguments, **options)
            found.flows += self.backend != "reference"
            return found

    monkeypatch.setattr(daflow, "get_model", lambda *arguments, **options: Wrong(right(*arguments, **options)))
    with pytest.raises(timing.WrongResultError, match="pipeline"):
        list(daflow.records(True, "cpu"))
