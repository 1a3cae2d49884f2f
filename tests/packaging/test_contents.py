"""What is handed out: the wheel holds the package and nothing else, the source archive all that git tracks."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import yaml

import daflow_ext

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOT_PYTHON = (".cpp", ".cu", ".cuh", ".h", ".o", ".txt", ".pyc", ".pyi")


def _run(command, cwd, **environment):
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"


def _tracked() -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git checkout, so there is nothing to compare with")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in names.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """A copy of what git tracks, with a model folder of several parts among the weights."""
    target = tmp_path_factory.mktemp("source")
    for name in _tracked():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    part = target / "daflow_ext/weights/nested/flow"
    part.mkdir(parents=True)
    (part / "config.json").write_text("{}")
    return target


def _must_be_in(package: pathlib.Path) -> set[str]:
    """Everything of the two package folders that is needed at run time."""
    files = {f"daflow_ext/{path.relative_to(package / 'daflow_ext')}" for path in (package / "daflow_ext").rglob("*")}
    triton = {f"daflow_ext/kernels/triton/{path.name}" for path in (package / "kernels/triton").glob("*.py")}
    return {name for name in files if (package / name).is_file()} | triton


def _check_package(names: set[str], source: pathlib.Path) -> None:
    assert _must_be_in(source) <= names, sorted(_must_be_in(source) - names)
    assert {"daflow_ext/py.typed", "daflow_ext/weights/nested/flow/config.json"} <= names
    assert not {name for name in names if name.endswith(NOT_PYTHON) and "/weights/" not in name}
    assert not {name for name in names if re.search(r"(^|/)(tests|benchmarks|docs|csrc|_build|build)/", name)}


def test_built_tree_holds_the_package_and_nothing_else(source, tmp_path):
    """The Python side of the wheel, without compiling."""
    _run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path], source)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {name.split("/")[0] for name in names} == {"daflow_ext"}
    assert names == _must_be_in(source)
    _check_package(names, source)


def _sdist(source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    _run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", folder], source)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_source_archive_holds_all_that_is_tracked(source, tmp_path):
    with tarfile.open(_sdist(source, tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    assert _tracked() <= names, sorted(_tracked() - names)
    made = {"PKG-INFO", "setup.cfg", "daflow_ext/weights/nested/flow/config.json"}
    assert {name for name in names - _tracked() if not name.startswith("daflow_ext.egg-info/")} == made


@pytest.mark.slow
def test_wheel_from_the_source_archive(source, tmp_path):
    with tarfile.open(_sdist(source, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, unpacked]
    _run(command, tmp_path, DAFLOW_CUDA="0")
    (wheel,) = tmp_path.glob("*.whl")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.split("-")[2:4] == [tag, tag]  # _host is per Python version
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert sum(entry.file_size for entry in archive.infolist() if entry.filename.endswith(".so")) < 30e6
    info = {name for name in names if ".dist-info/" in name}
    assert {name.split("/", 1)[1] for name in info} >= {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    libraries = {name for name in names if name.endswith(".so")}
    assert {name.split(".")[0] for name in libraries} == {"daflow_ext/_C", "daflow_ext/_host"}
    _check_package(names - info - libraries, source)


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert citation["version"] == daflow_ext.__version__ == project[1]
    assert citation["license"] == "Apache-2.0"


def _supported() -> tuple[int, int]:
    found = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    return int(found[1]), int(found[2])


def test_oldest_python_is_the_same_everywhere():
    oldest = "{}{}".format(*_supported())
    text = (ROOT / "pyproject.toml").read_text()
    assert f'target-version = "py{oldest}"' in text
    assert f'build = "cp{oldest}-*' in text
    assert 'python_version = "{}.{}"'.format(*_supported()) in text


def test_sources_parse_in_the_oldest_python():
    for path in [*(ROOT / "daflow_ext").rglob("*.py"), *(ROOT / "kernels").rglob("*.py"), ROOT / "setup.py"]:
        ast.parse(path.read_text(), str(path), feature_version=_supported())
