"""Opt-in stand-ins for compiled modules of other repositories, so that they run unmodified on our kernels.

Example:
    >>> from daflow_ext.correlation.shims import install_alt_cuda_corr
    >>> install_alt_cuda_corr()  # before the repository does `import alt_cuda_corr`
"""

import importlib.machinery
import sys
import types
from typing import Any

import torch

from .. import ops

_NAME = "alt_cuda_corr"
_replaced: dict[str, types.ModuleType | None] = {}  # what a forced installation took the place of


def install_alt_cuda_corr(*, backend: str = "auto", force: bool = False) -> types.ModuleType:
    """Register a module ``alt_cuda_corr``; every later ``import alt_cuda_corr`` of RAFT and its descendants finds it.

    It has the two functions of the CUDA extension, and works on the CPU as well::

        forward(fmap1, fmap2, coords, radius) -> [corr]
        backward(fmap1, fmap2, coords, corr_grad, radius) -> [fmap1_grad, fmap2_grad, coords_grad]

    with fmap1 [B, H, W, C], fmap2 [B, H2, W2, C], coords [B, N, H, W, 2] (x, y in pixels of fmap2, float32) and corr
    [B, N, (2 radius + 1)^2, H, W] in the dtype of the maps, x offset slow, not divided by sqrt(C).

    Differences to the extension: any C, half precision, the current device and stream; ``coords_grad`` is the true
    gradient, the original returns zeros (RAFT cuts it anyway); ``forward`` outside of an autograd function is
    differentiable, where the original silently stops the gradient; ``backward`` runs the forward pass again.

    Args:
        backend: as for :func:`daflow_ext.ops.corr_lookup`.
        force: replace the real extension if it has been imported already (code that holds it keeps it).
    Returns: the module, also when it was installed before.
    Raises:
        RuntimeError: the real extension has been imported already and ``force`` is False.
    """
    present = sys.modules.get(_NAME)
    # A directory of uncompiled sources on sys.path imports as an empty package: nothing to protect.
    if hasattr(present, "forward") and not _is_ours(present) and not force:
        raise RuntimeError(
            f"install_alt_cuda_corr: the module {_NAME} of {getattr(present, '__file__', None)} is already imported; "
            "install before importing the repository, or pass force=True"
        )
    if not _is_ours(present):
        _replaced[_NAME] = present
    sys.modules[_NAME] = _module(backend)
    return sys.modules[_NAME]


def uninstall_alt_cuda_corr() -> None:
    """Undo :func:`install_alt_cuda_corr`; nothing happens where it is not installed."""
    if not _is_ours(sys.modules.get(_NAME)):
        return
    before = _replaced.pop(_NAME, None)
    if before is None:
        del sys.modules[_NAME]
    else:
        sys.modules[_NAME] = before


def _is_ours(module: types.ModuleType | None) -> bool:
    return getattr(module, "__daflow_ext__", False)


def _module(backend: str) -> types.ModuleType:
    def forward(fmap1: torch.Tensor, fmap2: torch.Tensor, coords: torch.Tensor, radius: int) -> list[torch.Tensor]:
        if fmap1.dim() != 4 or fmap2.dim() != 4 or coords.dim() != 5:
            raise ValueError(
                f"{_NAME}: fmap1 [B, H, W, C], fmap2 [B, H2, W2, C] and coords [B, N, H, W, 2] were expected, "
                f"got {list(fmap1.shape)}, {list(fmap2.shape)} and {list(coords.shape)}"
            )
        centres = coords.permute(0, 1, 4, 2, 3)  # [B, N, 2, H, W]
        maps = fmap1.permute(0, 3, 1, 2), fmap2.permute(0, 3, 1, 2)
        out_dtype = fmap1.dtype
        return [ops.corr_lookup(maps[0], [maps[1]], centres, radius, scale=1.0, out_dtype=out_dtype, backend=backend)]

    def backward(
        fmap1: torch.Tensor, fmap2: torch.Tensor, coords: torch.Tensor, corr_grad: torch.Tensor, radius: int
    ) -> list[torch.Tensor]:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (fmap1, fmap2, coords)]
            (corr,) = forward(leaves[0], leaves[1], leaves[2], radius)
            return list(torch.autograd.grad(corr, leaves, corr_grad))

    module: Any = types.ModuleType(_NAME, "RAFT's alt_cuda_corr on the kernels of daflow_ext.")
    module.__spec__ = importlib.machinery.ModuleSpec(_NAME, loader=None, origin="daflow_ext")
    module.__daflow_ext__ = True
    module.forward, module.backward = forward, backward
    return module
