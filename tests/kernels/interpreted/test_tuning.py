"""Which launch options are taken, and how autotune replaces them."""

import pytest
import torch
import triton

from daflow_ext.kernels.triton import tuning

FAST, SLOW, WRONG = (tuning.Config((tile,), 1, 1) for tile in (1, 2, 3))


@pytest.mark.parametrize(
    ("arch", "entry"), [(80, 80), (86, 80), (89, 80), (90, 90), (100, 100), (103, 100), (121, 120)]
)
def test_the_newest_entry_that_is_not_newer_than_the_device(arch, entry, monkeypatch):
    monkeypatch.setattr(tuning, "architecture", lambda: arch)
    table = tuning.CONFIGS["st_attention"][entry]
    assert tuning.config("st_attention", torch.bfloat16, 64) == table["half"][64]
    assert tuning.config("st_attention", torch.float16, 72) == table["half"][128]
    assert tuning.config("st_attention", torch.float32, 16) == table["tf32x3"][64]


def test_older_devices_are_refused(monkeypatch):
    monkeypatch.setattr(tuning, "architecture", lambda: 75)
    with pytest.raises(RuntimeError, match="this device has 7"):
        tuning.config("qk_norm", torch.float32)


def test_every_kernel_has_an_entry_for_every_kind_and_the_interpreter():
    assert set(tuning.CONFIGS) == set(tuning.INTERPRETED)
    for kernel, by_arch in tuning.CONFIGS.items():
        assert 80 in by_arch, kernel
        for by_kind in by_arch.values():
            assert set(by_kind) == {"half", "tf32", "tf32x3"}, kernel


def test_candidates_of_the_architecture(monkeypatch):
    monkeypatch.setattr(tuning, "architecture", lambda: 89)
    found = tuning.candidates("st_attention", torch.bfloat16, 64)
    assert next(iter(found)) == "default"
    assert found == {
        "default": tuning.config("st_attention", torch.bfloat16, 64),
        **tuning.CANDIDATES["st_attention"][80],
    }
    for others in ((torch.bfloat16, 128), (torch.float32, 64)):
        assert list(tuning.candidates("st_attention", *others)) == ["default"]
    assert list(tuning.candidates("qk_norm", torch.bfloat16)) == ["default"]


def test_no_candidate_is_a_default_or_another_candidate():
    for kernel, by_arch in tuning.CANDIDATES.items():
        for arch, by_name in by_arch.items():
            configs = [tuning.CONFIGS[kernel][arch]["half"][64], *by_name.values()]
            assert len(set(configs)) == len(configs), (kernel, arch)


def test_float32_follows_the_matmul_switch():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for precision, kind in (("tf32", "tf32"), ("ieee", "tf32x3")):
            matmul.fp32_precision = precision
            assert tuning.dot_precision(torch.float32) == kind
    finally:
        matmul.fp32_precision = before


def test_autotune_keeps_the_fastest_that_agrees(monkeypatch):
    monkeypatch.setattr(tuning, "_overrides", {})

    def call():
        config = tuning.config("qk_norm", torch.float32)
        return torch.zeros(2) if config != WRONG else torch.ones(2)

    times = {FAST: 1.0, SLOW: 2.0, WRONG: 0.5}
    monkeypatch.setattr(triton.testing, "do_bench", lambda call, **_: times[tuning.config("qk_norm", torch.float32)])
    assert tuning.autotune("qk_norm", call, [SLOW, WRONG, FAST], atol=0.5) == FAST
    assert tuning.config("qk_norm", torch.float32) == FAST
    with tuning.use(qk_norm=SLOW):
        assert tuning.config("qk_norm", torch.float32) == SLOW
    assert tuning.config("qk_norm", torch.float32) == FAST
    with pytest.raises(RuntimeError, match="qk_norm: no candidate ran and agreed"):
        tuning.autotune("qk_norm", call, [WRONG], atol=0.5)
