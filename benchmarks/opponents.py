"""Correlation blocks of other packages, measured beside ours where they can be imported; none is required.

``python -m benchmarks.opponents`` lists them, and for each why it cannot run here. torchvision is also looked for in
the folder $TORCHVISION: `make extras` keeps it in build/extras/torchvision, away from what would import it, too.
"""

import dataclasses
import importlib
import os
import sys
import types
from collections.abc import Callable

import torch
import torch.nn.functional as F

Lookup = Callable[[torch.Tensor], torch.Tensor]  # coords [B, 2, H, W] -> [B, L * (2r+1)^2, H, W]


@dataclasses.dataclass(frozen=True)
class Opponent:
    """A correlation block of another package.

    Args:
        name: as its package index spells it.
        module: what must be importable.
        devices: where it runs.
        build: ``build(fmap1, fmap2, num_levels, radius)`` gives the lookup.
        follows: it looks where the coordinates say; else only around every pixel itself, on one level.
        load: imports ``module``, where that takes more than saying so.
    """

    name: str
    module: str
    devices: tuple[str, ...]
    build: Callable[..., Lookup]
    follows: bool = True
    load: Callable[[str], types.ModuleType] = importlib.import_module

    def refusal(self, device: str) -> str | None:
        """Why it cannot run on ``device``, or None."""
        kind = torch.device(device).type
        if kind not in self.devices:
            return f"runs on {' and '.join(self.devices)} only"
        try:
            module = self.load(self.module)
        except (ImportError, OSError, RuntimeError) as error:
            return f"cannot import {self.module}: {error}"
        return "daflow_ext's own stand-in" if getattr(module, "__daflow_ext__", False) else None


def _pooled(fmap: torch.Tensor, levels: int) -> list[torch.Tensor]:
    """[B, H_l, W_l, C] contiguous."""
    pyramid = [fmap]
    for _ in range(levels - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return [level.permute(0, 2, 3, 1).contiguous() for level in pyramid]


_named: list[torch.library.Library] = []  # a library takes its schemas along when it is collected


def _load_torchvision(name: str) -> types.ModuleType:
    """Also the wheel of another torch build, which fails to import for want of two operators that RAFT never calls."""
    if (folder := os.environ.get("TORCHVISION")) and folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    _named.append(torch.library.Library("torchvision", "DEF"))
    for operator in ("nms", "qnms"):
        _named[-1].define(f"{operator}(Tensor boxes) -> Tensor")
    return importlib.import_module(name)


def _torchvision(fmap1: torch.Tensor, fmap2: torch.Tensor, levels: int, radius: int) -> Lookup:
    block = importlib.import_module("torchvision.models.optical_flow.raft").CorrBlock(num_levels=levels, radius=radius)
    block.build_pyramid(fmap1, fmap2)
    return block.index_pyramid


def _alt_cuda_corr(fmap1: torch.Tensor, fmap2: torch.Tensor, levels: int, radius: int) -> Lookup:
    extension = importlib.import_module("alt_cuda_corr")
    query, pyramid = fmap1.permute(0, 2, 3, 1).contiguous(), _pooled(fmap2, levels)

    def lookup(coords: torch.Tensor) -> torch.Tensor:
        centres = coords.permute(0, 2, 3, 1)[:, None]  # [B, 1, H, W, 2]
        windows = [
            extension.forward(query, level, (centres / 2**index).contiguous(), radius)[0].squeeze(1)
            for index, level in enumerate(pyramid)
        ]
        return torch.cat(windows, dim=1) / fmap1.shape[1] ** 0.5

    return lookup


def _fused_local_corr(fmap1: torch.Tensor, fmap2: torch.Tensor, levels: int, radius: int) -> Lookup:
    local_corr = importlib.import_module("local_corr").local_corr
    batch, channels, height, width = fmap1.shape
    query, pyramid = fmap1.flatten(2).transpose(1, 2).contiguous(), _pooled(fmap2, levels)
    steps = torch.arange(-radius, radius + 1, dtype=fmap1.dtype, device=fmap1.device)
    offsets = torch.cartesian_prod(steps, steps)  # x slow

    def lookup(coords: torch.Tensor) -> torch.Tensor:
        centres = coords.flatten(2).transpose(1, 2)[:, :, None]  # [B, HW, 1, 2]
        windows = [
            local_corr(query, level, (centres / 2**index + offsets + 0.5).contiguous(), mode="bilinear")  # pixel edges
            for index, level in enumerate(pyramid)
        ]
        return torch.cat(windows, dim=2).transpose(1, 2).reshape(batch, -1, height, width) / channels**0.5

    return lookup


def _spatial_correlation_sampler(fmap1: torch.Tensor, fmap2: torch.Tensor, levels: int, radius: int) -> Lookup:
    sample = importlib.import_module("spatial_correlation_sampler").spatial_correlation_sample

    def lookup(coords: torch.Tensor) -> torch.Tensor:
        window = sample(fmap1, fmap2, kernel_size=1, patch_size=2 * radius + 1)  # [B, dy, dx, H, W]
        return window.transpose(1, 2).flatten(1, 2) / fmap1.shape[1] ** 0.5

    return lookup


OPPONENTS = (
    Opponent(
        "torchvision",
        "torchvision.models.optical_flow.raft",
        ("cpu", "cuda"),
        _torchvision,
        load=_load_torchvision,
    ),
    Opponent("alt_cuda_corr", "alt_cuda_corr", ("cuda",), _alt_cuda_corr),
    Opponent("fused-local-corr", "local_corr", ("cpu", "cuda"), _fused_local_corr),
    Opponent(
        "spatial-correlation-sampler",
        "spatial_correlation_sampler",
        ("cpu", "cuda"),
        _spatial_correlation_sampler,
        follows=False,
    ),
)


def runnable(device: str, *, follows: bool) -> list[Opponent]:
    """Those that can run on ``device`` and do, or do not, follow coordinates."""
    return [o for o in OPPONENTS if o.follows == follows and o.refusal(device) is None]


if __name__ == "__main__":
    for opponent in OPPONENTS:
        for device in ("cpu", "cuda"):
            print(f"{opponent.name:28} {device:5} {opponent.refusal(device) or 'can run'}")
