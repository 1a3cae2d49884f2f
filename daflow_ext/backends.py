"""Which implementation of an op runs: ``reference`` (plain PyTorch), ``cpu`` or ``cuda`` (compiled).

Every choice can be asked for (:func:`can_run`), named (``backend=``) or left to ``auto``; ``auto`` logs once what it
chose and why. A named backend that cannot run raises with the remedy; nothing falls back in silence.
"""

import functools
import os

import torch

from . import _load

BACKENDS = ("reference", "cpu", "cuda")
OPS = ("bilinear_sample", "corr_lookup", "corr_pyramid", "volume_lookup")


def can_run(op: str, backend: str, device: torch.device | str | None = None) -> tuple[bool, str]:
    """Whether ``backend`` can run ``op`` (on tensors of ``device``, if given), and the reason why not.

    Raises:
        ValueError: unknown op or backend.
    """
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; expected one of {', '.join(OPS)}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected one of auto, {', '.join(BACKENDS)}")
    if backend == "reference":
        return True, ""
    missing = _load.CPU_MISSING if backend == "cpu" else _load.CUDA_MISSING
    if missing is not None:
        return False, missing
    if device is not None and torch.device(device).type != backend:
        return False, f"tensors are on {device}, the {backend} backend needs them on {backend}"
    if device is None and backend == "cuda" and not torch.cuda.is_available():
        return False, "no CUDA device is visible"
    return True, ""


def resolve(op: str, backend: str, device: torch.device) -> str:
    """The backend that will run: ``backend`` itself, or the choice of ``auto`` (``DAFLOW_BACKEND`` overrides it).

    Raises:
        ValueError: unknown backend.
        RuntimeError: the named backend cannot run here; the message says why.
    """
    if backend == "auto":
        backend = os.environ.get("DAFLOW_BACKEND", "auto")
    if backend == "auto":
        return _automatic(op, device.type)
    able, reason = can_run(op, backend, device)
    if not able:
        raise RuntimeError(f"{op}: backend {backend!r} cannot run: {reason}")
    return backend


# torch.compile bakes the choice in; it cannot trace the log line. This is what torch.compiler.assume_constant_result
# does, but that imports the whole compiler and doubles the time of `import daflow_ext`.
resolve._dynamo_marked_constant = True


@functools.cache
def _automatic(op: str, device_type: str) -> str:
    if device_type in ("cpu", "cuda"):
        able, reason = can_run(op, device_type, device_type)
        if able:
            _load.logger.info("%s on %s: backend %s", op, device_type, device_type)
            return device_type
    else:
        reason = f"no compiled kernels for {device_type}"
    _load.logger.warning("%s on %s: backend reference (slow), because %s", op, device_type, reason)
    return "reference"


def describe() -> dict[str, dict[str, str]]:
    """For every op and backend ``"available"`` or the reason why not: the table of ``daflow info``."""
    table = {}
    for op in OPS:
        answers = {backend: can_run(op, backend) for backend in BACKENDS}
        table[op] = {backend: "available" if able else reason for backend, (able, reason) in answers.items()}
    return table
