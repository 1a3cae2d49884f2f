"""Every way of installing works: isolated or not, editable or not; no second torch, and outside the source tree."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

CHECK = pathlib.Path(__file__).with_name("check_installed.py")


def _run(command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """A copy of what git tracks (or, outside a checkout, of the tree), so that this build disturbs no other."""
    target = tmp_path_factory.mktemp("source")
    if (ROOT / ".git").exists():
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
    else:
        ignore = shutil.ignore_patterns(".venv", "build", "*.so", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, target, ignore=ignore, dirs_exist_ok=True)
    return target


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> pathlib.Path:
    """A fresh environment whose site-packages holds links to the packages of this one, daflow_ext excepted.

    Links instead of a second torch (900 MB): for pip, setuptools and the torch locator they are installed packages.
    """
    folder = tmp_path_factory.mktemp("venv")
    _run([sys.executable, "-m", "venv", "--without-pip", folder])
    fresh = folder / "bin/python"
    target = pathlib.Path(_run([fresh, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"]).strip())
    for entry in pathlib.Path(sysconfig.get_path("platlib")).iterdir():
        if "daflow_ext" not in entry.name and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)
    return fresh


@pytest.mark.slow
@pytest.mark.parametrize("isolation", [True, False], ids=["isolated", "no-isolation"])
@pytest.mark.parametrize("editable", [False, True], ids=["normal", "editable"])
def test_pip_install(source, python, tmp_path, isolation, editable):
    torch_before = _run([python, "-m", "pip", "freeze"]).count("torch==")
    flags = [] if isolation else ["--no-build-isolation"]
    where = ["-e", source] if editable else [source]
    log = _run([python, "-m", "pip", "install", "-v", *flags, *where], cwd=tmp_path)
    assert not re.search(r"(Downloading|Collecting|Using cached) torch\b", log), "pip fetched a second torch"
    last = [line.strip() for line in log.splitlines() if re.search(r"(CPU|CUDA) library:|Triton:", line)]
    assert len(last) == 3
    assert last[0].startswith("CPU library: built for generic")
    assert last[1].startswith("CUDA library: ")
    assert _run([python, "-m", "pip", "freeze"]).count("torch==") == torch_before

    location = _run([python, CHECK], cwd=tmp_path).strip().splitlines()[-1]
    assert pathlib.Path(location).is_relative_to(source) == editable
    daflow = python.parent / "daflow"
    assert "daflow_ext" in _run([daflow, "info"], cwd=tmp_path)
    assert _run([daflow, "--version"], cwd=tmp_path).strip()
    if editable:  # the repository root on sys.path must not shadow other packages called `kernels`
        code = "import daflow_ext.kernels.triton, kernels; assert not getattr(kernels, '__file__', None)"
        _run([python, "-c", code], cwd=source)
    _run([python, "-m", "pip", "uninstall", "-y", "daflow_ext"])


@pytest.mark.slow
def test_cuda_insisted_without_nvcc_is_one_clear_sentence(source, python, tmp_path):
    environment = {**os.environ, "DAFLOW_CUDA": "1", "PATH": f"{python.parent}:/usr/bin:/bin"}
    if shutil.which("nvcc", path=environment["PATH"]) or pathlib.Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc is installed in a place that cannot be hidden")
    result = subprocess.run(
        [python, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "DAFLOW_CUDA=1 but nvcc" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("value", "expected"), [("maybe", "expected auto, 0 or 1")])
def test_bad_build_setting(source, python, value, expected):
    result = subprocess.run(
        [python, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=source, env={**os.environ, "DAFLOW_CUDA": value}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert expected in result.stderr


def test_locator_reads_version_without_importing(tmp_path, monkeypatch):
    sys.path.insert(0, str(ROOT / "_build"))
    try:
        import torch_locator
    finally:
        sys.path.pop(0)
    root = tmp_path / "torch"
    (root / "include/torch/csrc/stable").mkdir(parents=True)
    (root / "version.py").write_text("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    monkeypatch.setenv("DAFLOW_TORCH_DIR", str(root))
    with pytest.raises(SystemExit, match="no stable-ABI headers"):
        torch_locator.find_torch()
    (root / "include/torch/csrc/stable/library.h").touch()
    found = torch_locator.find_torch()
    assert (found.root, found.version, found.cuda) == (root, "2.11.0+cu130", "13.0")
