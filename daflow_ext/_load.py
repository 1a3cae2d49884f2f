"""Loads the compiled operator libraries once, and remembers why one is missing."""

import importlib.util
import logging
import os
import pathlib

import torch

_HERE = pathlib.Path(__file__).parent  # not resolved: a build beside the normal one has links to these files

logger = logging.getLogger("daflow_ext")


def _configure_log() -> None:
    """DAFLOW_LOG=info|debug|warning shows the package's log on stderr; without it the application decides."""
    level = os.environ.get("DAFLOW_LOG")
    if level is None:
        return
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError(f"DAFLOW_LOG={level} is not understood; expected debug, info, warning or error")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())


_configure_log()


def _load(name: str) -> str | None:
    """Load daflow_ext/<name>; None when it worked, else the reason in one sentence."""
    path = _HERE / name
    if not path.is_file():
        return f"{name} is not built; run `pip install --no-build-isolation -e .` in the source tree"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{name} does not load: {error}"
    return None


def _load_cuda() -> str | None:
    if CPU_MISSING is not None:
        return CPU_MISSING
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return _load("_cuda.so")


CPU_MISSING: str | None = _load("_C.abi3.so")
"""None when the schemas and CPU kernels are loaded, else why not."""

CUDA_MISSING: str | None = _load_cuda()
"""None when the CUDA kernels are loaded, else why not."""

TRITON_MISSING: str | None = (
    None if importlib.util.find_spec("triton") else "triton is not installed; pip install triton"
)
"""None when Triton can be imported (which happens at first use), else why not."""
