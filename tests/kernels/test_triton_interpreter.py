"""Runs tests/kernels/interpreted, one process per file, under Triton's interpreter."""

import os
import pathlib
import subprocess
import sys

import pytest

from daflow_ext import _load

HERE = pathlib.Path(__file__).resolve().parent
FILES = sorted((HERE / "interpreted").glob("test_*.py"))


@pytest.mark.skipif(_load.TRITON_MISSING is not None, reason=str(_load.TRITON_MISSING))
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.removeprefix("test_"))
def test_kernels_in_the_interpreter(file, request):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    options = ["--runslow"] if request.config.getoption("--runslow") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(file)]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert " passed" in done.stdout, done.stdout
