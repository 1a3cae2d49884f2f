"""Builds the package's own C++ with AddressSanitizer and UndefinedBehaviorSanitizer and runs the tests that reach it.

    python -m tests.reliability.sanitize [PYTEST ARGUMENTS ...]      (or: make sanitize)

The libraries are built in build/sanitize and live in build/sanitize/package, whose Python files are links to those of
the source tree: the normal build and the environment stay as they are. Leaks are not looked for (Python and torch keep
memory until they exit), and the code of torch, OpenCV, HDF5 and FFmpeg is not instrumented: in them only heap errors in
C library calls (memcpy, strlen, free ...) are seen.
"""

import os
import pathlib
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
PACKAGE = BUILD / "package"
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


def build() -> None:
    """Build and install into PACKAGE, incrementally."""
    sys.path.insert(0, str(ROOT / "_build"))
    from torch_locator import find_torch

    found = find_torch()
    binaries = pathlib.Path(sysconfig.get_path("scripts"))
    cmake = str(binaries / "cmake") if (binaries / "cmake").exists() else "cmake"
    pybind11 = subprocess.run([sys.executable, "-c", "import pybind11; print(pybind11.get_include())"],
                              capture_output=True, text=True).stdout.strip()  # fmt: skip
    configure = [
        cmake, "-S", str(ROOT), "-B", str(BUILD),
        "-DCMAKE_BUILD_TYPE=None",
        f"-DCMAKE_INSTALL_PREFIX={PACKAGE}",
        f"-DCMAKE_CXX_FLAGS={FLAGS}",
        f"-DDAFLOW_TORCH_DIR={found.root}",
        f"-DDAFLOW_TORCH_VERSION={found.version}",
        "-DDAFLOW_CUDA=0",
        "-DDAFLOW_OPTIMISE=-O1",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DDAFLOW_PYBIND11_INCLUDE={pybind11 or found.root / 'include'}",
    ]  # fmt: skip
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
    subprocess.run([cmake, "--build", str(BUILD), "--target", "install", "--parallel", jobs], check=True)
    link_sources()


def link_sources() -> None:
    """Every file and folder of the package that is no compiled library, as a link."""
    folder = PACKAGE / "daflow_ext"
    links = {path.name: path for path in (ROOT / "daflow_ext").iterdir() if path.suffix not in (".so", ".pyc")}
    for old in folder.iterdir():
        if old.is_symlink():
            old.unlink()
    for name, path in links.items():
        if name != "__pycache__":
            (folder / name).symlink_to(path)


def environment(libraries: list[str]) -> dict[str, str]:
    """Variables under which Python loads the instrumented package."""
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": os.pathsep.join([str(PACKAGE), str(ROOT)]),
        "PYTHONMALLOC": "malloc",
        "PYTHONSAFEPATH": "1",  # the working directory holds the normal package
        # allocator_may_return_null: asking for too much memory is an error of Python's, not the end
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "DAFLOW_TEST_SANITIZE": "1",
    }


def main(arguments: list[str]) -> int:
    libraries = runtimes()
    if libraries is None:
        print("g++ has no AddressSanitizer here; install libasan and libubsan", file=sys.stderr)
        return 2
    build()
    check = f"import daflow_ext; assert daflow_ext.__file__.startswith({str(PACKAGE)!r}), daflow_ext.__file__"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    tests = [test for test in TESTS if (ROOT / test).exists()]
    chosen = environment(libraries)
    subprocess.run([sys.executable, "-c", check], check=True, env=chosen, cwd=ROOT)
    return subprocess.run([*command, *(arguments or ["-k", LEFT_OUT, *tests])], env=chosen, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
