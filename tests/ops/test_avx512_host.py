"""The AVX-512 kernels on a machine that need not have AVX-512: their instructions emulated (tests/avx512_host)."""

import platform

import pytest
import torch

from tests.reliability.variant import Variant


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="there the kernels are not built")
@pytest.mark.skipif(torch.ops.daflow_ext.cpu_capability() == "avx512_bf16", reason="this machine runs them itself")
def test_the_op_tests_pass_on_emulated_avx512():
    variant = Variant("avx512_host", "-DDAFLOW_EMULATE_AVX512=ON")
    variant.build()
    assert variant.pytest("-k", "avx512", "tests/ops") == 0
