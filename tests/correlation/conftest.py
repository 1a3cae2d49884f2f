"""Every test of the correlation classes runs on every backend that is here."""

import pytest
import torch

from daflow_ext import backends

_OPS = ("corr_lookup", "corr_pyramid", "volume_lookup")


def _reason_against(backend: str) -> str:
    for op in _OPS:
        able, reason = backends.can_run(op, backend)
        if not able:
            return reason
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"daflow_ext::{op}", backend.upper()):
            return f"{op} has no {backend} kernel in this build"
    return ""


def _parameters() -> list:
    parameters = ["reference"]
    for backend in ("cpu", "cuda"):
        reason = _reason_against(backend)
        marks = [pytest.mark.skipif(bool(reason), reason=reason)] + ([pytest.mark.gpu] if backend == "cuda" else [])
        parameters.append(pytest.param(backend, marks=marks))
    return parameters


@pytest.fixture(params=_parameters())
def backend(request) -> str:
    return request.param


@pytest.fixture
def device(backend) -> str:
    return "cuda" if backend == "cuda" else "cpu"
