"""The package built in another way, beside the normal build: its libraries with links to the Python files."""

import os
import pathlib
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Variant:
    """The build in build/``name``, whose package is in build/``name``/package."""

    def __init__(self, name: str, *options: str) -> None:
        self.build_folder = ROOT / "build" / name
        self.package = self.build_folder / "package"
        self.options = options

    def build(self) -> None:
        """Build and install, incrementally."""
        sys.path.insert(0, str(ROOT / "_build"))
        from torch_locator import find_torch

        found = find_torch()
        binaries = pathlib.Path(sysconfig.get_path("scripts"))
        cmake = str(binaries / "cmake") if (binaries / "cmake").exists() else "cmake"
        pybind11 = subprocess.run([sys.executable, "-c", "import pybind11; print(pybind11.get_include())"],
                                  capture_output=True, text=True).stdout.strip()  # fmt: skip
        configure = [
            cmake, "-S", str(ROOT), "-B", str(self.build_folder),
            f"-DCMAKE_INSTALL_PREFIX={self.package}",
            f"-DDAFLOW_TORCH_DIR={found.root}",
            f"-DDAFLOW_TORCH_VERSION={found.version}",
            "-DDAFLOW_CUDA=0",
            "-DDAFLOW_OPTIMISE=-O1",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DDAFLOW_PYBIND11_INCLUDE={pybind11 or found.root / 'include'}",
            *self.options,
        ]  # fmt: skip
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        compile_ = [cmake, "--build", str(self.build_folder), "--target", "install", "--parallel", jobs]
        subprocess.run(compile_, check=True)
        self._link_sources()

    def _link_sources(self) -> None:
        """Every file and folder of the package that is no compiled library, as a link."""
        folder = self.package / "daflow_ext"
        links = {path.name: path for path in (ROOT / "daflow_ext").iterdir() if path.suffix not in (".so", ".pyc")}
        for old in folder.iterdir():
            if old.is_symlink():
                old.unlink()
        for name, path in links.items():
            if name != "__pycache__":
                (folder / name).symlink_to(path)

    def pytest(self, *arguments: str, **variables: str) -> int:
        """Run the tests on this package; return pytest's exit status."""
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(self.package), str(ROOT)]),
            "PYTHONSAFEPATH": "1",  # the working directory holds the normal package
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            **variables,
        }
        check = (
            "import torch, daflow_ext._host as host; "
            "paths = [host.__file__, *(path for path in torch.ops.loaded_libraries if 'daflow_ext' in path)]; "
            f"assert len(paths) > 1 and all(path.startswith({str(self.package)!r}) for path in paths), paths"
        )
        subprocess.run([sys.executable, "-c", check], check=True, env=environment, cwd=ROOT)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, env=environment, cwd=ROOT).returncode
