"""One lookup and its gradients in useful GFLOP/s, per grid, dtype, flow and instruction set.

``python -m benchmarks.corr_lookup [--quick]``; the comparison with a stored volume is in :mod:`benchmarks.corr_block`.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator

import torch

from daflow_ext import ops, reference

from . import timing
from .corr_block import CHANNELS, GFLOPS_GOAL, GOALS, LEVELS, RADIUS, Grid, inputs

OP = "corr_lookup"
BFLOAT16_GOAL = 1.5  # times float32, where the machine multiplies bfloat16
CEILING = 1536  # side of the matrix product that shows what the machine gives at most
ISAS = ("generic", "avx2", "avx512", "avx512_bf16")


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Lookups of every grid, then the rest at the first grid."""
    grids = list(GOALS)[: 1 if quick else None]
    for grid in grids:
        yield from lookup_records(grid, device, repeats=5 if quick else 9)
    if device == "cpu":
        yield from isa_records(grids[0])
    yield from backward_records(grids[0], device)


def arguments(grid: Grid, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """fmap1, pyramid and a smooth flow's coords, in the kernels' own memory layout."""
    fmap1, fmap2, coords = inputs(grid, device)
    pyramid = ops.corr_pyramid(fmap2.to(dtype), LEVELS)
    return fmap1.to(dtype).contiguous(memory_format=torch.channels_last), pyramid, coords[-1]


def flop(grid: Grid) -> int:
    """Useful arithmetic of one lookup: (2r+2)^2 products of C channels per query and level."""
    return grid[0] * grid[1] * LEVELS * (2 * RADIUS + 2) ** 2 * 2 * CHANNELS


def lookup_records(grid: Grid, device: str, repeats: int) -> Iterator[timing.Record]:
    """float32, half precision, and float32 with a random flow, whose windows share nothing."""
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor([grid[1], grid[0]]).view(1, 2, 1, 1)
    wild = (size * torch.rand(1, 2, *grid, generator=generator)).to(device)
    cases = {str(dtype)[6:]: arguments(grid, device, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    cases["float32, random flow"] = (*cases["float32"][:2], wild)
    with torch.inference_mode():
        for name, (fmap1, pyramid, coords) in cases.items():
            rows = slice(0, 8)  # enough to see a wrong kernel, and quick by the reference
            band = fmap1[:, :, rows], pyramid, coords[:, :, rows]
            timing.gate(name, ops.corr_lookup(*band, RADIUS), reference.corr_lookup(*band, RADIUS), atol=5e-5)
        ways = {name: lambda case=case: ops.corr_lookup(*case, RADIUS) for name, case in cases.items()}
        square = torch.randn(CEILING, CEILING, device=device)
        ways["ceiling"] = lambda: square @ square
        times = timing.interleaved(ways, repeats=repeats, device=device)
    ceiling = 2 * CEILING**3 / times.pop("ceiling").median / 1e9
    yield timing.Record(OP, f"ceiling: float32 matrix product, beside {_spell(grid)}", ceiling, "GFLOP/s")
    share = 100 * flop(grid) / times["float32"].median / 1e9 / ceiling
    yield timing.Record(OP, f"lookup, {_spell(grid)}, float32", share, "% of the ceiling")
    wide = device == "cpu" and torch.ops.daflow_ext.cpu_capability().startswith("avx512")
    for name, time in times.items():
        goal = GFLOPS_GOAL if wide and name == "float32" else None
        yield _record(f"lookup, {_spell(grid)}, {name}", grid, time, goal)
    yield timing.Record(
        OP,
        f"lookup, {_spell(grid)}, bfloat16",
        times["float32"].median / times["bfloat16"].median,
        "x float32",
        goal=BFLOAT16_GOAL if wide and torch.ops.daflow_ext.cpu_capability() == "avx512_bf16" else None,
        details=times["bfloat16"].milliseconds(),
    )


def isa_records(grid: Grid) -> Iterator[timing.Record]:
    """float32 on every instruction set this machine has."""
    case = arguments(grid, "cpu", torch.float32)
    best = torch.ops.daflow_ext.cpu_capability()
    with torch.inference_mode():
        for isa in ISAS[: min(ISAS.index(best), ISAS.index("avx512")) + 1]:
            with _capability(isa):
                time = timing.interleaved({isa: lambda: ops.corr_lookup(*case, RADIUS)}, repeats=5)[isa]
            yield _record(f"lookup, {_spell(grid)}, {isa}", grid, time)


def backward_records(grid: Grid, device: str) -> Iterator[timing.Record]:
    """Each gradient alone, and all three at once."""
    fmap1, pyramid, coords = arguments(grid, device, torch.float32)
    upstream = torch.randn(1, LEVELS * (2 * RADIUS + 1) ** 2, *grid, device=device)

    def gradient(*need: bool) -> Callable[[], list[torch.Tensor]]:
        options = dict(zip(("need_fmap1", "need_pyramid", "need_coords"), need, strict=True), deterministic=True)
        return lambda: torch.ops.daflow_ext.corr_lookup_backward(
            upstream, fmap1, pyramid, coords, [RADIUS, RADIUS], scale=None, order="xy", **options
        )

    ways = {
        "fmap1": gradient(True, False, False),
        "pyramid": gradient(False, True, False),
        "coords": gradient(False, False, True),
        "all three": gradient(True, True, True),
    }
    for name, time in timing.interleaved(ways, repeats=7, device=device).items():
        yield _record(f"gradient of {name}, {_spell(grid)}", grid, time, lookups=3 if name == "all three" else 1)


@contextlib.contextmanager
def _capability(isa: str) -> Iterator[None]:
    before = torch.ops.daflow_ext.cpu_capability()
    torch.ops.daflow_ext.set_cpu_capability(isa)
    try:
        yield
    finally:
        torch.ops.daflow_ext.set_cpu_capability(before)


def _record(case: str, grid: Grid, time: timing.Timing, goal: float | None = None, lookups: int = 1) -> timing.Record:
    """``lookups``: how many times the arithmetic of a lookup was done."""
    rate = lookups * flop(grid) / time.median / 1e9
    return timing.Record(OP, case, rate, "useful GFLOP/s", goal, details={**time.milliseconds(), "channels": CHANNELS})


def _spell(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest grid only")
    with timing.threads(1):
        for line in records(parser.parse_args().quick, "cpu"):
            print(line.line(), flush=True)
