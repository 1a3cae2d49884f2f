"""One lookup and its gradients, per grid, dtype and flow.

On the CPU in useful GFLOP/s, per instruction set too. On CUDA as a share of the roofline: the time that the least
traffic, or the useful arithmetic, would take at the speed of a copy, or of a matrix product, measured in the same run.

``python -m benchmarks.corr_lookup [--quick]``; the comparison with a stored volume is in :mod:`benchmarks.corr_block`.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator

import torch

from daflow_ext import ops, reference

from . import timing
from .corr_block import CHANNELS, GFLOPS_GOAL, GOALS, LEVELS, LOOKUPS, RADIUS, Grid, inputs

OP = "corr_lookup"
DETERMINISTIC_GOAL = 2.0  # times the fast gradients, on CUDA
BFLOAT16_GOAL = 1.5  # times float32, where the machine multiplies bfloat16
CEILING = 1536  # side of the matrix product that shows what the machine gives at most
ISAS = ("generic", "avx2", "avx512", "avx512_bf16")

PRODUCTS = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""How CUDA multiplies: the dtype of the features; tf32 is float32 that torch allows to be rounded."""

TALL = ", tiles of 8 x 16"  # else of 8 x 8; see docs/ops/corr_lookup.md

ROOFLINE_GOAL = 40.0  # percent, float16 at ROOFLINE_GRID: within 2.5 times of what memory allows
ROOFLINE_GRID = (135, 240)


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Lookups of every grid, then the rest at the first grid."""
    grids = list(GOALS)
    if device == "cpu":
        grids = grids[: 1 if quick else None]
        for grid in grids:
            yield from lookup_records(grid, device, repeats=5 if quick else 9)
        yield from isa_records(grids[0])
    else:
        for grid in grids:
            yield from roofline_records(grid, device)
    yield from backward_records(grids[0], device)


def arguments(grid: Grid, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """fmap1, pyramid and a smooth flow's coords, in the kernels' own memory layout."""
    fmap1, fmap2, coords = inputs(grid, device)
    pyramid = ops.corr_pyramid(fmap2.to(dtype), LEVELS)
    return fmap1.to(dtype).contiguous(memory_format=torch.channels_last), pyramid, coords[-1]


def random_coords(grid: Grid, device: str) -> torch.Tensor:
    """Anywhere in the image, each on its own."""
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor([grid[1], grid[0]]).view(1, 2, 1, 1)
    return (size * torch.rand(1, 2, *grid, generator=generator)).to(device)


def flop(grid: Grid) -> int:
    """Useful arithmetic of one lookup: (2r+2)^2 products of C channels per query and level."""
    return grid[0] * grid[1] * LEVELS * (2 * RADIUS + 2) ** 2 * 2 * CHANNELS


def lookup_records(grid: Grid, device: str, repeats: int) -> Iterator[timing.Record]:
    """float32, half precision, and float32 with a random flow, whose windows share nothing."""
    cases = {str(dtype)[6:]: arguments(grid, device, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    cases["float32, random flow"] = (*cases["float32"][:2], random_coords(grid, device))
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


def least_bytes(grid: Grid, dtype: torch.dtype, out_dtype: torch.dtype) -> int:
    """What one lookup reads and writes if every element moves once."""
    pyramid = sum((grid[0] >> level) * (grid[1] >> level) for level in range(LEVELS))
    pixels, samples = grid[0] * grid[1], LEVELS * (2 * RADIUS + 1) ** 2
    features = (pixels + pyramid) * CHANNELS * dtype.itemsize
    return features + pixels * (2 * torch.float32.itemsize + samples * out_dtype.itemsize)


def roofline_records(grid: Grid, device: str) -> Iterator[timing.Record]:
    """CUDA: every way to multiply, smooth and random flow, and the smallest output."""
    cases = {}  # name: way to multiply, arguments, options
    for product, dtype in PRODUCTS.items():
        fmap1, pyramid, coords = arguments(grid, device, dtype)
        cases[product] = product, (fmap1, pyramid, coords), {}
        cases[f"{product}, random flow"] = product, (fmap1, pyramid, random_coords(grid, device)), {}
        if dtype.itemsize == 2:
            options = {"out_dtype": dtype, "channels_last": True}
            cases[f"{product}, {product} channels-last output"] = product, (fmap1, pyramid, coords), options
    smooth = {name: case for name, case in cases.items() if not name.endswith("flow") and name != "float32"}
    cases |= {f"{name}{TALL}": case for name, case in smooth.items()}
    with torch.inference_mode():
        for name, (product, (fmap1, pyramid, coords), options) in cases.items():
            rows = slice(0, 8)  # enough to see a wrong kernel, and quick by the reference
            band = fmap1[:, :, rows], pyramid, coords[:, :, rows], RADIUS
            with _tiles(name, device):
                out = _multiplying(product, ops.corr_lookup, *band, **options)
            timing.gate(name, out.float(), reference.corr_lookup(*band), atol=_tolerance(product, out.dtype))
        ways = {}
        for name, (product, case, options) in cases.items():
            with _tiles(name, device):
                call = functools.partial(_multiplying, product, ops.corr_lookup, *case, RADIUS, **options)
                ways[name] = _repeated(call, device)
        times = timing.interleaved(ways, repeats=10, device=device)
    for name, (product, _, options) in cases.items():
        moved = least_bytes(grid, PRODUCTS[product], options.get("out_dtype", torch.float32))
        copy, multiply = timing.copy_ceiling(device), _product_ceiling(product, device)
        seconds = times[name].median / LOOKUPS
        yield timing.Record(
            OP,
            f"lookup, {_spell(grid)}, {name}",
            100 * max(moved / copy, flop(grid) / multiply) / seconds,
            "% of the roofline",
            goal=ROOFLINE_GOAL if (name, grid) == ("float16", ROOFLINE_GRID) else None,
            details={
                "us": round(1e6 * seconds, 2),
                "lookups": {"count": LOOKUPS, **times[name].milliseconds()},
                "gflop": round(flop(grid) / 1e9, 3),
                "megabytes": round(moved / 1e6, 3),
                "copy_gb_s": round(copy / 1e9, 1),
                "product_tflop_s": round(multiply / 1e12, 2),
                "channels": CHANNELS,
            },
        )


def _tolerance(product: str, out_dtype: torch.dtype) -> float:
    """Of correlations of unit normal features; tf32 and float16 keep 11 bits of what they round, bfloat16 8."""
    if out_dtype == torch.bfloat16:
        return 4e-2
    return 5e-3 if product == "tf32" or out_dtype == torch.float16 else 5e-5


def _repeated(call: Callable[[], object], device: str) -> Callable[[], None]:
    """LOOKUPS calls; on CUDA as a graph, without the time that Python needs to start them."""

    def calls() -> None:
        for _ in range(LOOKUPS):
            call()

    if torch.device(device).type != "cuda":
        return calls
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    return graph.replay


@contextlib.contextmanager
def _tiles(name: str, device: str) -> Iterator[None]:
    """Tall tiles for the cases that are named so. The choice is made at the launch, or when a graph is captured."""
    if device != "cuda" or not name.endswith(TALL):
        yield
        return
    torch.ops.daflow_ext.set_tall_tiles(True)
    try:
        yield
    finally:
        torch.ops.daflow_ext.set_tall_tiles(False)


@functools.cache
def _product_ceiling(product: str, device: str) -> float:
    """FLOP/s; not the value that timing remembers, which cannot tell tf32 from float32."""
    return _multiplying(product, timing.product_ceiling.__wrapped__, PRODUCTS[product], device)


def _multiplying(product: str, function: Callable, *args: object, **options: object) -> object:
    """The function's result where torch allows tf32 if that is the product, and does not otherwise."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = product == "tf32"
    try:
        return function(*args, **options)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


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
    if device == "cuda":
        for dtype in (torch.float32, torch.bfloat16):
            yield deterministic_record(grid, device, dtype)


def deterministic_record(grid: Grid, device: str, dtype: torch.dtype) -> timing.Record:
    """The gradients of both feature maps: the mode with equal bits in every run as a multiple of the fast one."""
    fmap1, pyramid, coords = arguments(grid, device, dtype)
    upstream = torch.randn(1, LEVELS * (2 * RADIUS + 1) ** 2, *grid, device=device)

    def gradient(deterministic: bool) -> list[torch.Tensor]:
        return torch.ops.daflow_ext.corr_lookup_backward(
            upstream, fmap1, pyramid, coords, [RADIUS, RADIUS], scale=None, order="xy", need_fmap1=True,
            need_pyramid=True, need_coords=False, deterministic=deterministic,
        )  # fmt: skip

    fast, exact = gradient(False), gradient(True)
    for one, other in zip(fast[2:], exact[2:], strict=True):
        rounding = 1e-5 if dtype == torch.float32 else 2.0**-7
        timing.gate("gradient of the pyramid", one, other, atol=rounding * other.abs().max().item())
    ways = {"fast": lambda: gradient(False), "deterministic": lambda: gradient(True)}
    times = timing.interleaved(ways, repeats=15, warmup=2, device=device)
    return timing.Record(
        OP,
        f"deterministic gradients, {_spell(grid)}, {str(dtype)[6:]}",
        times["deterministic"].median / times["fast"].median,
        "x fast",
        goal=DETERMINISTIC_GOAL,
        at_least=False,
        details={**times["deterministic"].milliseconds(), "fast": times["fast"].milliseconds()},
    )


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
