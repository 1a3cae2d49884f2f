"""Choosing a backend: named, automatic, refused; and the two environment variables."""

import os
import subprocess
import sys

import pytest
import torch

from daflow_ext import _load, backends, ops

CODE = """
import torch
from daflow_ext import ops
ops.corr_pyramid(torch.zeros(1, 2, 4, 4), 1)
ops.corr_pyramid(torch.zeros(1, 2, 4, 4), 1)
"""


def _run(**environment):
    command = [sys.executable, "-c", CODE]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_every_op_has_a_reference_and_a_reason_or_runs():
    table = backends.describe()
    assert set(table) == set(backends.OPS)
    for op, answers in table.items():
        assert answers["reference"] == "available", op
        assert all(answers.values()), op


def test_auto_takes_the_compiled_kernels():
    assert _load.CPU_MISSING is None, _load.CPU_MISSING
    assert backends.resolve("corr_lookup", "auto", torch.device("cpu")) == "cpu"


def test_named_backend_that_cannot_run_raises_with_the_reason():
    fmap = torch.zeros(1, 2, 4, 4)
    with pytest.raises(RuntimeError, match="corr_pyramid: backend 'cuda' cannot run: "):
        ops.corr_pyramid(fmap, 1, backend="cuda")
    with pytest.raises(ValueError, match="unknown backend 'gpu'; expected one of auto, reference, cpu"):
        ops.corr_pyramid(fmap, 1, backend="gpu")
    with pytest.raises(ValueError, match="unknown op 'conv'"):
        backends.can_run("conv", "cpu")


@pytest.mark.parametrize(("op", "backend"), [("corr_lookup", "cuda"), ("st_attention", "triton")])
def test_gpus_that_are_too_old_are_refused(monkeypatch, op, backend):
    """The kernels need the matrix instructions and asynchronous copies of compute capability 8.0."""
    monkeypatch.setattr(_load, f"{backend.upper()}_MISSING", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    able, reason = backends.can_run(op, backend, "cuda")
    assert not able
    assert f"the {backend} kernels need compute capability 8.0 or newer, cuda has 7.5" in reason


def test_log_says_once_what_was_chosen():
    result = _run(DAFLOW_LOG="info")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("corr_pyramid on cpu: backend cpu") == 1
    assert _run().stderr == ""


def test_environment_names_the_backend():
    result = _run(DAFLOW_BACKEND="cuda")
    assert result.returncode != 0
    assert "backend 'cuda' cannot run" in result.stderr
    assert _run(DAFLOW_BACKEND="reference").returncode == 0
    assert "DAFLOW_LOG=loud is not understood" in _run(DAFLOW_LOG="loud").stderr


def test_importing_the_package_leaves_the_compiler_alone():
    """torch._dynamo takes as long to import as torch itself."""
    code = "import sys, daflow_ext.cli; daflow_ext.cli.build_parser(); print('torch._dynamo' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
