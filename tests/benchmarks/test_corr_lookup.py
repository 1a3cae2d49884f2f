"""Every way to multiply, every instruction set and every gradient is checked before it is timed."""

import pytest
import torch

from benchmarks import corr_lookup, roofline, timing
from daflow_ext import ops


@pytest.fixture
def ceilings(monkeypatch):
    monkeypatch.setattr(roofline, "copy_ceiling", lambda device: 1e9)
    monkeypatch.setattr(roofline, "product_ceiling", lambda *_: 1e12)


def test_every_product_is_timed(ceilings):
    records = list(corr_lookup.roofline_records((5, 6), "cpu"))
    cases = [record.case.removeprefix("lookup, 5x6, ") for record in records]
    assert {"float32", "tf32", "float16", "bfloat16", "tf32, random flow", "float16, tiles of 8 x 16"} <= set(cases)
    assert "float32, tiles of 8 x 16" not in cases  # takes no tensor cores
    moved = 2 * 256 * (30 + 37) + 4 * 30 * (2 + 324)
    record = records[cases.index("float16")]  # memory is the bound: share = bytes / bandwidth / time
    assert record.value == pytest.approx(100 * moved / 1e9 / (record.details["us"] * 1e-6), rel=0.01)
    assert not torch.backends.cuda.matmul.allow_tf32


def test_tall_tiles_are_on_while_their_cases_are_captured(monkeypatch):
    said = []
    monkeypatch.setattr(torch.ops.daflow_ext, "set_tall_tiles", said.append, raising=False)
    for name in ("float16", "float16, tiles of 8 x 16"):
        with corr_lookup._tiles(name, "cuda"):
            said.append(name)
    assert said == ["float16", True, "float16, tiles of 8 x 16", False]


def test_a_wrong_lookup_is_not_timed(ceilings, monkeypatch):
    right = ops.corr_lookup
    monkeypatch.setattr(ops, "corr_lookup", lambda *args, **options: right(*args, **options) + 1e-2)
    with pytest.raises(timing.WrongResultError, match="float32"):
        list(corr_lookup.roofline_records((5, 6), "cpu"))


def test_wrong_gradients_are_not_timed(monkeypatch):
    right = corr_lookup.gradients
    for index, name in enumerate(("fmap1", "coords", "pyramid")):

        def wrong(*arguments, index=index, **options):
            found = right(*arguments, **options)
            return [one * (1.001 if place == index else 1.0) for place, one in enumerate(found)]

        monkeypatch.setattr(corr_lookup, "gradients", wrong)
        with pytest.raises(timing.WrongResultError, match=f"gradient of {name}"):
            list(corr_lookup.backward_records((9, 10), "cpu"))


def test_a_wrong_instruction_set_is_not_timed(monkeypatch):
    right = ops.corr_lookup

    def wrong(*arguments, **options):
        broken = torch.ops.daflow_ext.cpu_capability() == "generic"
        return right(*arguments, **options) + (1e-2 if broken else 0.0)

    monkeypatch.setattr(ops, "corr_lookup", wrong)
    with pytest.raises(timing.WrongResultError, match="generic"):
        list(corr_lookup.isa_records((5, 6)))
