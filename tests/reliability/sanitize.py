"""Builds the package's own C++ with AddressSanitizer and UndefinedBehaviorSanitizer and runs the tests that reach it.

    python -m tests.reliability.sanitize [PYTEST ARGUMENTS ...]      (or: make sanitize)

The libraries are built in build/sanitize, the instructions of AVX-512 emulated (tests/avx512_host): the normal build
and the environment stay as they are. Leaks are not looked for (Python and torch keep memory until they exit), and the
code of torch, OpenCV, HDF5 and FFmpeg is not instrumented: in them only heap errors in C library calls (memcpy, strlen,
free ...) are seen.
"""

import os
import subprocess
import sys

from tests.reliability.variant import ROOT, Variant

FLAGS = (
    "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all "
    "-fno-omit-frame-pointer -O1 -g1 -D_GLIBCXX_ASSERTIONS"
)
TESTS = (
    "tests/ops/test_bilinear_sample.py",
    "tests/ops/test_corr_lookup.py",
    "tests/ops/test_corr_lookup_errors.py",
    "tests/ops/test_corr_pyramid.py",
    "tests/ops/test_volume_lookup.py",
    "tests/ops/test_properties.py",
    "tests/datasets/test_scenes.py",
    "tests/fuzz",
)
# not: what is about torch's compiler, needs tens of gigabytes, or measures memory and time
LEFT_OUT = "not compile and not opcheck and not 31_bits and not memory and not no_volume_is_stored and not gradcheck"


def runtimes() -> list[str] | None:
    """Libraries to load first; libstdc++ too, because the sanitizer looks for the exceptions of torch when it starts.

    None where the compiler has no sanitizer.
    """
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    paths = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in names
    ]
    return paths if all(map(os.path.isabs, paths)) else None


def main(arguments: list[str]) -> int:
    libraries = runtimes()
    if libraries is None:
        print("g++ has no AddressSanitizer here; install libasan and libubsan", file=sys.stderr)
        return 2
    variant = Variant("sanitize", "-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={FLAGS}", "-DDAFLOW_EMULATE_AVX512=ON")
    variant.build()
    tests = [test for test in TESTS if (ROOT / test).exists()]
    return variant.pytest(
        *(arguments or ["-k", LEFT_OUT, *tests]),
        LD_PRELOAD=" ".join(libraries),
        PYTHONMALLOC="malloc",
        # allocator_may_return_null: asking for too much memory is an error of Python's, not the end
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1",
        UBSAN_OPTIONS="print_stacktrace=1",
        DAFLOW_TEST_SANITIZE="1",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
