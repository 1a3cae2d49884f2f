"""memory="auto": whether a CorrBlock stores the all-pairs volume or computes every window on the fly."""

import functools
import logging
import os
import pathlib
from collections.abc import Sequence

import torch

logger = logging.getLogger("daflow_ext")

# The volume never takes more than this part of the memory that is free when the block is built.
FREE_FRACTION = 0.25

# The volume costs the products of all pairs once and a read per lookup; on the fly every lookup costs (2r+2)^2 products
# per query and level. Measured 2026-11-20 on one core of an AMD EPYC with AVX-512 (C = 128 and 256, 12 and 32 lookups,
# `python -m benchmarks.corr_block --crossover`): with fewer products than this part of the windows' the volume is up to
# three times faster, at 0.52 both take the same time within 20 %, from 0.64 on windows on the fly win; training alike.
# 2026-11-30, one with AVX2 only: alike at 0.64 in inference, in training at 0.33 to 0.4 (C = 128) and 0.75 (C = 256).
CPU_LIMIT = 0.5

# Not measured on a GPU yet: the volume only where it is so small that it does not matter. The records "on the fly" in
# "x volume" of `python -m benchmarks.run --op corr_block --device cuda` are that measurement.
CUDA_VOLUME_BYTES = 2**24


def choose(
    queries: int,
    level_pixels: Sequence[int],
    *,
    radius: int,
    lookups: int,
    element_size: int,
    training: bool,
    device: torch.device,
    compiled: bool,
) -> str:
    """``"volume"`` or ``"on_the_fly"``, the one expected to take less time in the memory that is free.

    Args:
        queries: pixels of fmap1, batch included.
        level_pixels: pixels of every level of fmap2.
        lookups: expected calls of the block.
        element_size: bytes of one element of the volume.
        training: gradients will flow, so the volume has one of its size too.
        compiled: the compiled kernels run; the reference computes all pairs at every lookup anyway.
    """
    volume_bytes = queries * sum(level_pixels) * element_size * (2 if training else 1)
    allowed_bytes = int(FREE_FRACTION * free_bytes(device))
    if volume_bytes > allowed_bytes:
        return "on_the_fly"
    if not compiled:
        return "volume"
    if device.type == "cuda":
        return "volume" if volume_bytes <= CUDA_VOLUME_BYTES else "on_the_fly"
    window_products = lookups * len(level_pixels) * (2 * radius + 2) ** 2
    return "volume" if sum(level_pixels) < CPU_LIMIT * window_products else "on_the_fly"


@functools.cache
def log_once(grid: tuple[int, ...], device_type: str, decision: str) -> None:
    """One line per grid and decision."""
    logger.info("CorrBlock memory='auto' on %s, (batch, height, width) = %s: %s", device_type, grid, decision)


def free_bytes(device: torch.device) -> int:
    """Memory free for a new tensor on ``device``; 0 where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return 0
    return int(min(_system_free_bytes(), _cgroup_free_bytes()))


def _system_free_bytes() -> int:
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _cgroup_free_bytes() -> int | float:
    """What a container may still take (cgroup v2); infinite outside one."""
    limit, used = (pathlib.Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if not limit.is_file() or not used.is_file():
        return float("inf")
    text = limit.read_text().strip()
    return float("inf") if text == "max" else max(int(text) - int(used.read_text()), 0)
