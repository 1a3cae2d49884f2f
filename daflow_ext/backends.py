"""Which implementation of an op runs: ``reference`` (plain PyTorch), ``cpu`` or ``cuda`` (compiled), ``sdpa``
(PyTorch's own fused attention on packed buffers) or ``triton``.

Every choice can be asked for (:func:`can_run`), named (``backend=``) or left to ``auto``; ``auto`` logs once what it
chose and why. A named backend that cannot run raises with the remedy; nothing falls back in silence.
"""

import functools
import logging
import os

import torch

from . import _load

_COMPILED = ("reference", "cpu", "cuda")
OPS = {
    "bilinear_sample": _COMPILED,
    "corr_lookup": _COMPILED,
    "corr_pyramid": _COMPILED,
    "qk_norm": ("reference", "triton"),
    "softargmax_flow": ("reference", "cpu", "triton"),
    "st_attention": ("reference", "sdpa", "triton"),
    "volume_lookup": _COMPILED,
}
"""Every op and the backends it has."""

BACKENDS = ("reference", "cpu", "cuda", "sdpa", "triton")


def can_run(op: str, backend: str, device: torch.device | str | None = None) -> tuple[bool, str]:
    """Whether ``backend`` can run ``op`` (on tensors of ``device``, if given), and the reason why not.

    Raises:
        ValueError: unknown op or backend.
    """
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; expected one of {', '.join(OPS)}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected one of auto, {', '.join(BACKENDS)}")
    if backend not in OPS[op]:
        return False, f"{op} has no {backend} backend, only {', '.join(OPS[op])}"
    if backend in ("reference", "sdpa"):
        return True, ""
    missing = {"cpu": _load.CPU_MISSING, "cuda": _load.CUDA_MISSING, "triton": _load.TRITON_MISSING}[backend]
    if missing is not None:
        return False, missing
    needed = "cpu" if backend == "cpu" else "cuda"
    if device is not None and torch.device(device).type != needed:
        return False, f"tensors are on {device}, the {backend} backend needs them on {needed}"
    if device is None and needed == "cuda" and not torch.cuda.is_available():
        return False, "no CUDA device is visible"
    if backend in ("cuda", "triton") and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return (
                False,
                f"the {backend} kernels need compute capability 8.0 or newer, {device or 'cuda'} has {major}.{minor}",
            )
    return True, ""


def resolve(op: str, backend: str, device: torch.device) -> str:
    """The backend that will run: ``backend`` itself, or the choice of ``auto`` (``DAFLOW_BACKEND`` overrides it).

    Raises:
        ValueError: unknown backend.
        RuntimeError: the named backend cannot run here; the message says why.
    """
    if backend == "auto":
        named = os.environ.get("DAFLOW_BACKEND", "auto")
        if named != "auto" and named not in BACKENDS:
            raise ValueError(f"DAFLOW_BACKEND={named} is unknown; expected one of auto, {', '.join(BACKENDS)}")
        backend = named if named in OPS[op] else "auto"  # an op without that backend chooses for itself
    if backend == "auto":
        return _automatic(op, device.type)
    able, reason = can_run(op, backend, device)
    if not able:
        raise RuntimeError(f"{op}: backend {backend!r} cannot run: {reason}")
    return backend


# torch.compile bakes the choice in; it cannot trace the log line. This is what torch.compiler.assume_constant_result
# does, but that imports the whole compiler and doubles the time of `import daflow_ext`.
setattr(resolve, "_dynamo_marked_constant", True)  # noqa: B010 (mypy knows no attributes of functions)


# What `auto` tries, in this order.
_PREFERENCE = {"cpu": ("cpu", "sdpa"), "cuda": ("cuda", "triton", "sdpa")}


@functools.cache
def _automatic(op: str, device_type: str) -> str:
    refused = [] if device_type in _PREFERENCE else [f"there are no kernels for {device_type}"]
    for backend in _PREFERENCE.get(device_type, ()):
        if backend not in OPS[op]:
            continue
        able, reason = can_run(op, backend, device_type)
        if able:
            because = f", because {'; '.join(refused)}" if refused else ""
            _load.logger.info("%s on %s: backend %s%s", op, device_type, backend, because)
            return backend
        refused.append(f"{backend}: {reason}")
    level = logging.WARNING if refused else logging.INFO
    _load.logger.log(
        level, "%s on %s: backend reference%s", op, device_type, f", because {'; '.join(refused)}" if refused else ""
    )
    return "reference"


def describe() -> dict[str, dict[str, str]]:
    """For every op and backend ``"available"`` or the reason why not: the table of ``daflow info``."""
    table = {}
    for op in OPS:
        answers = {backend: can_run(op, backend) for backend in OPS[op]}
        table[op] = {backend: "available" if able else reason for backend, (able, reason) in answers.items()}
    return table
