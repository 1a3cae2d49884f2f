"""The CUDA kernels and their glue under AddressSanitizer and UndefinedBehaviorSanitizer, on the CPU."""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
OPS = ("bilinear_sample", "corr_lookup", "corr_lookup_backward", "corr_lookup_tile", "corr_pyramid", "volume_lookup")
TESTS = [HERE / f"test_cuda_{op}.py" for op in OPS]


@pytest.mark.slow
def test_no_access_out_of_bounds_and_no_undefined_behaviour(tmp_path):
    """Every op test once more, with each tensor and each shared array between red zones."""
    # libstdc++ too: the sanitizer looks for the C++ exceptions of torch when it starts
    names = ("libasan.so", "libstdc++.so.6")
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in names
    ]
    if not all(map(os.path.isabs, runtimes)):
        pytest.skip("g++ has no AddressSanitizer here")
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "DAFLOW_TEST_SANITIZE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-o", f"cache_dir={tmp_path}", *map(str, TESTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
