"""One lookup and its gradients, per grid, dtype and flow.

On the CPU in useful GFLOP/s, per instruction set too; on CUDA as a share of the roofline (:mod:`benchmarks.roofline`).

``python -m benchmarks.corr_lookup [--quick]``; the comparison with a stored volume is in :mod:`benchmarks.corr_block`.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator

import torch

from daflow_ext import ops, reference

from . import roofline, timing
from .corr_block import CHANNELS, GFLOPS_GOAL, GOALS, LEVELS, LOOKUPS, RADIUS, Grid, inputs

OP = "corr_lookup"
DETERMINISTIC_GOAL = 2.0  # times the fast gradients, on CUDA
BFLOAT16_GOAL = 1.5  # times float32, where the machine multiplies bfloat16
ISAS = ("generic", "avx2", "avx512", "avx512_bf16")

Case = tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]

PRODUCTS = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""How CUDA multiplies: the dtype of the features; tf32 is float32 that torch allows to be rounded."""

TALL = ", tiles of 8 x 16"  # else of 8 x 8; see docs/ops/corr_lookup.md

GRADIENTS = {"fmap1": slice(0, 1), "coords": slice(1, 2), "pyramid": slice(2, None)}  # as the operator returns them

ROOFLINE_GOAL = 40.0  # percent, float16 at ROOFLINE_GRID: within 2.5 times of what memory allows
ROOFLINE_GRID = (135, 240)


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Lookups of every grid (on the CPU of the first if quick), then the rest at the first grid."""
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


def arguments(grid: Grid, device: str, dtype: torch.dtype) -> Case:
    """fmap1, pyramid and a smooth flow's coords, in the kernels' own memory layout."""
    fmap1, fmap2, coords = inputs(grid, device)
    pyramid = ops.corr_pyramid(fmap2.to(dtype), LEVELS)
    return fmap1.to(dtype).contiguous(memory_format=torch.channels_last), pyramid, coords[-1]


def random_coords(grid: Grid, device: str) -> torch.Tensor:
    """Anywhere in the image, each on its own."""
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor([grid[1], grid[0]]).view(1, 2, 1, 1)
    return (size * torch.rand(1, 2, *grid, generator=generator)).to(device)


def band(fmap1: torch.Tensor, pyramid: list[torch.Tensor], coords: torch.Tensor) -> Case:
    """The first rows of queries: enough to see a wrong kernel, and quick by the reference."""
    return fmap1[:, :, :8], pyramid, coords[:, :, :8]


def lookup_records(grid: Grid, device: str, repeats: int) -> Iterator[timing.Record]:
    """float32, half precision, and float32 with a random flow, whose windows share nothing."""
    cases = {str(dtype)[6:]: arguments(grid, device, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    cases["float32, random flow"] = (*cases["float32"][:2], random_coords(grid, device))
    with torch.inference_mode():
        for name, case in cases.items():
            _gate(name, case)
        ways = {name: lambda case=case: ops.corr_lookup(*case, RADIUS) for name, case in cases.items()}
        works = {name: roofline.count(way) for name, way in ways.items()}
        times = timing.interleaved(ways, repeats=repeats, device=device)
    wide = device == "cpu" and torch.ops.daflow_ext.cpu_capability().startswith("avx512")
    for name, time in times.items():
        goal = GFLOPS_GOAL if wide and name == "float32" else None
        ceilings = roofline.Ceilings.of(device, cases[name][0].dtype)
        yield _record(f"lookup, {_spell(grid)}, {name}", works[name], time, ceilings, goal)
    yield timing.Record(
        OP,
        f"lookup, {_spell(grid)}, bfloat16",
        times["float32"].median / times["bfloat16"].median,
        "x float32",
        goal=BFLOAT16_GOAL if wide and torch.ops.daflow_ext.cpu_capability() == "avx512_bf16" else None,
        details=works["bfloat16"].details(times["bfloat16"], roofline.Ceilings.of(device, torch.bfloat16)),
    )


def _gate(name: str, case: Case, atol: float = 5e-5) -> None:
    few = band(*case)
    timing.gate(name, ops.corr_lookup(*few, RADIUS), reference.corr_lookup(*few, RADIUS), atol)


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
        for name, (product, case, options) in cases.items():
            few = band(*case)
            with _tiles(name, device):
                out = _multiplying(product, ops.corr_lookup, *few, RADIUS, **options)
            timing.gate(name, out.float(), reference.corr_lookup(*few, RADIUS), atol=_tolerance(product, out.dtype))
        ways, works = {}, {}
        for name, (product, case, options) in cases.items():
            with _tiles(name, device):
                call = functools.partial(_multiplying, product, ops.corr_lookup, *case, RADIUS, **options)
                ways[name] = _repeated(call, device)
            one = roofline.count(call)
            works[name] = roofline.Work(LOOKUPS * one.flop, LOOKUPS * one.moved)
        times = timing.interleaved(ways, repeats=10, device=device)
    for name, (product, _, _) in cases.items():
        ceilings = _multiplying(product, roofline.Ceilings.of, device, PRODUCTS[product])
        seconds = times[name].median
        yield timing.Record(
            OP,
            f"lookup, {_spell(grid)}, {name}",
            works[name].percent(seconds, ceilings),
            "% of the roofline",
            goal=ROOFLINE_GOAL if (name, grid) == ("float16", ROOFLINE_GRID) else None,
            details={
                **works[name].details(times[name], ceilings),
                "lookups": LOOKUPS,
                "us": round(1e6 * seconds / LOOKUPS, 2),
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
    best, ceilings = torch.ops.daflow_ext.cpu_capability(), roofline.Ceilings.of("cpu")
    with torch.inference_mode():
        work = roofline.count(lambda: ops.corr_lookup(*case, RADIUS))
        for isa in ISAS[: min(ISAS.index(best), ISAS.index("avx512")) + 1]:
            with _capability(isa):
                _gate(isa, case)
                time = timing.interleaved({isa: lambda: ops.corr_lookup(*case, RADIUS)}, repeats=5)[isa]
            yield _record(f"lookup, {_spell(grid)}, {isa}", work, time, ceilings)


def backward_records(grid: Grid, device: str) -> Iterator[timing.Record]:
    """Each gradient alone, and all three at once."""
    case, ceilings = arguments(grid, device, torch.float32), roofline.Ceilings.of(device)
    upstream = torch.randn(1, LEVELS * (2 * RADIUS + 1) ** 2, *grid, device=device)
    needed = {**{name: (name,) for name in GRADIENTS}, "all three": tuple(GRADIENTS)}
    for names in needed.values():
        _gate_gradients(case, upstream, names)
    ways = {name: functools.partial(gradients, case, upstream, names) for name, names in needed.items()}
    works = {name: roofline.count(way) for name, way in ways.items()}
    for name, time in timing.interleaved(ways, repeats=7, device=device).items():
        yield _record(f"gradient of {name}, {_spell(grid)}", works[name], time, ceilings)
    if device == "cuda":
        for dtype in (torch.float32, torch.bfloat16):
            yield deterministic_record(grid, device, dtype)


def gradients(
    case: Case, upstream: torch.Tensor, needed: tuple[str, ...], deterministic: bool = True
) -> list[torch.Tensor]:
    """By :data:`GRADIENTS`; those that are not needed are empty or missing."""
    options = {f"need_{name}": name in needed for name in GRADIENTS}
    return torch.ops.daflow_ext.corr_lookup_backward(
        upstream, *case, [RADIUS, RADIUS], scale=None, order="xy", deterministic=deterministic, **options
    )


def _gate_gradients(case: Case, upstream: torch.Tensor, needed: tuple[str, ...]) -> None:
    """A band of queries against autograd of the reference."""
    few, upstream = band(*case), upstream[:, :, :8]
    fmap1, coords, *pyramid = leaves = [tensor.detach().requires_grad_() for tensor in (few[0], few[2], *few[1])]
    truth = torch.autograd.grad(reference.corr_lookup(fmap1, pyramid, coords, RADIUS), leaves, upstream)
    ours = gradients(few, upstream, needed)
    for name in needed:
        for one, other in zip(ours[GRADIENTS[name]], truth[GRADIENTS[name]], strict=True):
            timing.gate(f"gradient of {name}", one, other, atol=1e-5 * other.abs().max().item())


def deterministic_record(grid: Grid, device: str, dtype: torch.dtype) -> timing.Record:
    """The gradients of both feature maps: the mode with equal bits in every run as a multiple of the fast one."""
    case, ceilings = arguments(grid, device, dtype), roofline.Ceilings.of(device, dtype)
    upstream = torch.randn(1, LEVELS * (2 * RADIUS + 1) ** 2, *grid, device=device)
    ways = {
        name: functools.partial(gradients, case, upstream, ("fmap1", "pyramid"), deterministic=name != "fast")
        for name in ("fast", "deterministic")
    }
    for one, other in zip(ways["fast"]()[2:], ways["deterministic"]()[2:], strict=True):
        rounding = 1e-5 if dtype == torch.float32 else 2.0**-7
        timing.gate("gradient of the pyramid", one, other, atol=rounding * other.abs().max().item())
    work = roofline.count(ways["fast"])
    times = timing.interleaved(ways, repeats=15, warmup=2, device=device)
    return timing.Record(
        OP,
        f"deterministic gradients, {_spell(grid)}, {str(dtype)[6:]}",
        times["deterministic"].median / times["fast"].median,
        "x fast",
        goal=DETERMINISTIC_GOAL,
        at_least=False,
        details={**work.details(times["deterministic"], ceilings), "fast": work.share(times["fast"], ceilings)},
    )


@contextlib.contextmanager
def _capability(isa: str) -> Iterator[None]:
    before = torch.ops.daflow_ext.cpu_capability()
    torch.ops.daflow_ext.set_cpu_capability(isa)
    try:
        yield
    finally:
        torch.ops.daflow_ext.set_cpu_capability(before)


def _record(
    case: str, work: roofline.Work, time: timing.Timing, ceilings: roofline.Ceilings, goal: float | None = None
) -> timing.Record:
    details = {**work.details(time, ceilings), "channels": CHANNELS}
    return timing.Record(OP, case, work.flop / time.median / 1e9, "useful GFLOP/s", goal, details=details)


def _spell(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest grid only")
    with timing.threads(1):
        for line in records(parser.parse_args().quick, "cpu"):
            print(line.line(), flush=True)
