"""Weights and real pairs for the tests of whole models."""

import functools
import pathlib
from collections.abc import Callable

import pytest
import torch

from daflow_ext import backends
from daflow_ext.models import RAFT

WEIGHTS = {"small": "raft-small.pth", "large": "raft-sintel.pth"}


@pytest.fixture(params=["cpu", "reference", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request) -> str:
    """Every backend of the correlation that can run here."""
    for op in ("corr_lookup", "corr_pyramid", "volume_lookup"):
        able, reason = backends.can_run(op, request.param, device_of(request.param))
        if not able:
            pytest.skip(reason)
    return request.param


@pytest.fixture(scope="session")
def official(shared) -> Callable[[str, str], RAFT]:
    """official(size, backend): the model with its official weights."""
    return functools.cache(lambda size, backend: load(shared, size, backend))


def load(shared: pathlib.Path, size: str, backend: str) -> RAFT:
    if backend == "cuda":  # the goldens are full float32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return RAFT.from_pretrained(shared / "weights" / WEIGHTS[size], backend=backend).to(device_of(backend))


def device_of(backend: str) -> str:
    """Where the tensors of a backend live; "auto" is tested on the CPU."""
    return "cuda" if backend == "cuda" else "cpu"
