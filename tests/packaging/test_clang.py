"""Clang compiles the package too: it refuses extensions of C++17 that GCC lets pass."""

import shutil

import pytest

from tests.reliability.variant import Variant


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang++") is None, reason="there is no clang++ here")
def test_clang_builds_a_package_that_works():
    variant = Variant("clang", "-DCMAKE_CXX_COMPILER=clang++")
    variant.build()
    assert variant.pytest("-k", "computed_by_hand", "tests/ops/test_corr_lookup.py") == 0
