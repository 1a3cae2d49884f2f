"""Builds the CUDA kernels and their launch glue for the CPU (tests/cuda_host) and loads them as torch operators."""

import concurrent.futures
import contextlib
import ctypes
import hashlib
import os
import pathlib
import shutil
import subprocess

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOST = ROOT / "tests" / "cuda_host"
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
INCLUDES = ["-DDAFLOW_CUDA_HOST", f"-I{HOST}", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'kernels' / 'cuda'}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def _compile(jobs: list[tuple[pathlib.Path, list[str]]], target: pathlib.Path, link: list[str]) -> None:
    """Compiles every (source, flags), two at a time, and links them into the shared library `target`."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"the C++ compiler {compiler} was not found")
    scratch = target.with_suffix(f".{os.getpid()}")
    scratch.mkdir(parents=True)

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"

    def compile_one(source: pathlib.Path, flags: list[str]) -> None:
        run(
            [
                compiler,
                *FLAGS,
                *INCLUDES,
                *flags,
                "-x",
                "c++",
                "-c",
                str(source),
                "-o",
                str(scratch / f"{source.name}.o"),
            ]
        )

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: compile_one(*job), jobs))
    run([compiler, "-shared", *map(str, sorted(scratch.glob("*.o"))), "-o", str(scratch / "library.so"), *link])
    os.replace(scratch / "library.so", target)
    shutil.rmtree(scratch)


def _sanitized() -> list[str]:
    return SANITIZE if os.environ.get("DAFLOW_TEST_SANITIZE") == "1" else []


def _build_operators(cache: pathlib.Path) -> pathlib.Path:
    torch_dir = pathlib.Path(torch.__file__).parent
    folders = (
        HOST,
        HOST / "cuda",
        ROOT / "csrc" / "common",
        ROOT / "csrc" / "cuda",
        ROOT / "kernels" / "cuda" / "common",
    )
    read = [
        path for folder in (*folders, ROOT / "kernels" / "cuda") for path in sorted(folder.glob("*")) if path.is_file()
    ]
    read += [ROOT / "csrc" / "library.cpp", pathlib.Path(__file__)]
    key = hashlib.sha256(torch.__version__.encode() + repr(_sanitized()).encode())
    for path in read:
        key.update(str(path).encode() + path.read_bytes())
    library = cache / f"daflow_cuda_host-{key.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    for stale in cache.glob("daflow_cuda_host-*.so"):
        stale.unlink()
    stable = [
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-DTORCH_STABLE_ONLY",
        "-isystem",
        str(torch_dir / "include"),
    ]
    operators = [*sorted((ROOT / "csrc" / "cuda").glob("*.cpp")), ROOT / "csrc" / "library.cpp"]
    jobs = [(source, _sanitized()) for source in sorted((ROOT / "kernels" / "cuda").glob("*.cu"))]
    jobs += [(source, [*_sanitized(), *stable, "-include", "register_on_cpu.h"]) for source in operators]
    jobs += [(HOST / "cuda_host.cpp", [])]
    _compile(jobs, library, ["-Wl,--no-as-needed", str(torch_dir / "lib" / "libtorch.so"), *_sanitized()])
    return library


class CudaHost:
    """The operators of the CUDA glue, on CPU tensors."""

    def __init__(self, library: pathlib.Path):
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        self._library.cuda_host_set_seed.argtypes = [ctypes.c_uint64]
        self._library.cuda_host_products.restype = ctypes.c_uint64
        self._library.cuda_host_copies.restype = ctypes.c_uint64
        self.ops = torch.ops.daflow_cuda_host

    @property
    def products(self) -> int:
        """Tensor-core instructions of the last launch."""
        return self._library.cuda_host_products()

    @property
    def copies(self) -> int:
        """16-byte pieces that the last launch copied to shared memory asynchronously; zeros do not count."""
        return self._library.cuda_host_copies()

    @contextlib.contextmanager
    def tall_tiles(self):
        """Lookups on tensor cores take 8 x 16 queries per block where shared memory allows it."""
        self.ops.set_tall_tiles(True)
        try:
            yield
        finally:
            self.ops.set_tall_tiles(False)

    @contextlib.contextmanager
    def shuffled(self, seed: int):
        """Threads, warps and blocks in shuffled order; 0 for index order."""
        self._library.cuda_host_set_seed(seed)
        try:
            yield
        finally:
            self._library.cuda_host_set_seed(0)


@pytest.fixture(scope="session")
def cuda_host(request) -> CudaHost:
    """The CUDA kernels and glue, compiled for the CPU; built once per state of the sources."""
    return CudaHost(_build_operators(request.config.cache.mkdir("cuda_host")))


@pytest.fixture(scope="session")
def compile_kernel(tmp_path_factory):
    """compile_kernel(name, source) -> ctypes library of a small kernel run by cuda_host.h."""

    def build(name: str, source: str) -> ctypes.CDLL:
        folder = tmp_path_factory.mktemp(name)
        (folder / f"{name}.cu").write_text(source)
        _compile([(folder / f"{name}.cu", []), (HOST / "cuda_host.cpp", [])], folder / f"{name}.so", [])
        library = ctypes.CDLL(str(folder / f"{name}.so"))
        library.cuda_host_set_seed.argtypes = [ctypes.c_uint64]
        library.cuda_host_message.restype = ctypes.c_char_p
        library.cuda_host_products.restype = ctypes.c_uint64
        return library

    return build


@pytest.fixture
def poisoned():
    """Uninitialised memory is NaN, so that an element a kernel forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
