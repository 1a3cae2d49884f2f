"""Drives CMake from setuptools; metadata is in pyproject.toml, build settings in the environment.

DAFLOW_CUDA=auto|0|1      build the CUDA library: if nvcc is found and torch has CUDA (auto), never, or always
DAFLOW_CUDA_ARCHS=80;90   target architectures (default 80;86;89;90;100;120; PTX of the newest is always included)
DAFLOW_TORCH_DIR=DIR      the torch package folder to build against
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build"))

from torch_locator import find_torch  # noqa: E402

DEFAULT_CUDA_ARCHS = "80;86;89;90;100;120"


def cuda_choice(torch) -> tuple[bool, str]:
    """Whether to build the CUDA library, and the line that says so at the end of the build."""
    wanted = os.environ.get("DAFLOW_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"DAFLOW_CUDA={wanted} is not understood; expected auto, 0 or 1")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    archs = os.environ.get("DAFLOW_CUDA_ARCHS", DEFAULT_CUDA_ARCHS)
    built = f"CUDA library: built for sm_{', sm_'.join(archs.split(';'))} + PTX"
    if wanted == "0":
        return False, "CUDA library: not built, because DAFLOW_CUDA=0"
    if wanted == "1":
        if nvcc is None:
            raise SystemExit(
                "DAFLOW_CUDA=1 but nvcc is not on PATH nor in /usr/local/cuda/bin; install the CUDA toolkit"
            )
        return True, built
    if nvcc is None:
        return False, "CUDA library: not built, because nvcc was not found (DAFLOW_CUDA=1 to insist)"
    if torch.cuda is None:
        return False, f"CUDA library: not built, because torch {torch.version} has no CUDA (DAFLOW_CUDA=1 to insist)"
    return True, built


def pybind11_include(torch) -> str:
    """Headers of pybind11: the package's, or (offline build with no pybind11 installed) the copy that torch carries."""
    if importlib.util.find_spec("pybind11") is None:
        return str(torch.root / "include")
    import pybind11

    return pybind11.get_include()


def triton_line() -> str:
    kernels = ", ".join(
        sorted(path.stem for path in (ROOT / "kernels/triton").glob("[a-z]*_*.py") if "backward" not in path.stem)
    )
    folders = {sysconfig.get_path("platlib"), sysconfig.get_path("purelib")}
    if any((pathlib.Path(folder) / "triton/__init__.py").is_file() for folder in folders):
        return f"Triton: {kernels} (compiled at first use)"
    return f"Triton: {kernels} will not run, because triton is not installed (`pip install triton`)"


class CMakeBuild(build_ext):
    """One CMake project makes every extension; setuptools only learns where the files are."""

    def run(self):
        torch = find_torch()
        if torch is None:
            raise SystemExit(
                "no torch >= 2.10 found to build against; install torch first (`pip install -r requirements.txt`), "
                "then `pip install --no-build-isolation .`, or set DAFLOW_TORCH_DIR to a torch package folder"
            )
        cuda, cuda_line = cuda_choice(torch)
        # not self.build_temp: an editable build's is a fresh temporary folder, which would recompile everything
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        prefix = ROOT if self.inplace or self.editable_mode else pathlib.Path(self.build_lib).resolve()
        cmake = shutil.which("cmake")
        if cmake is None:
            raise SystemExit("cmake was not found; `pip install cmake ninja`")
        generator = "Ninja" if shutil.which("ninja") else "Unix Makefiles"
        self._drop_stale_cache(build, generator)
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", generator,
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_INSTALL_PREFIX={prefix}",
            f"-DDAFLOW_TORCH_DIR={torch.root}",
            f"-DDAFLOW_TORCH_VERSION={torch.version}",
            f"-DDAFLOW_CUDA={int(cuda)}",
            f"-DDAFLOW_CUDA_ARCHS={os.environ.get('DAFLOW_CUDA_ARCHS', DEFAULT_CUDA_ARCHS)}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DDAFLOW_PYBIND11_INCLUDE={pybind11_include(torch)}",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run([cmake, "--build", str(build), "--target", "install", "--parallel", jobs], check=True)
        isa = (build / "cpu_isa.txt").read_text().strip()
        print(f"CPU library: {isa} (torch {torch.version} headers)\n{cuda_line}\n{triton_line()}", flush=True)

    @staticmethod
    def _drop_stale_cache(build: pathlib.Path, generator: str) -> None:
        """An isolated build leaves a cache that names its deleted cmake and ninja; the next one must not use it."""
        cache = build / "CMakeCache.txt"
        if not cache.is_file():
            return
        entries = dict(line.split("=", 1) for line in cache.read_text().splitlines() if "=" in line)
        tools = [path for key, path in entries.items() if key.startswith(("CMAKE_MAKE_PROGRAM:", "CMAKE_COMMAND:"))]
        if entries.get("CMAKE_GENERATOR:INTERNAL") != generator or not all(map(os.path.exists, tools)):
            shutil.rmtree(build)

    # CMake installs in place, so setuptools has nothing to compile, copy or map.
    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return []

    def copy_extensions_to_source(self):
        pass


setup(
    ext_modules=[Extension("daflow_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    packages=[*find_packages(include=["daflow_ext", "daflow_ext.*"]), "daflow_ext.kernels.triton"],
    package_dir={"daflow_ext": "daflow_ext", "daflow_ext.kernels.triton": "kernels/triton"},
    package_data={
        "daflow_ext": ["py.typed", "assets/*", "configs/*.yaml", "weights/**/*"],
        "daflow_ext.flow.report": ["*.css", "*.html", "*.js"],
    },
)
