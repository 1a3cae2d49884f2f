"""softargmax_flow beside the chain of torch calls it stands for and the matrix product alone: time and memory."""

from collections.abc import Callable, Iterator

import torch

from daflow_ext import ops

from . import roofline, timing

OP = "softargmax_flow"
TIME_GOAL = 1.2  # times the matrix product alone, on one CPU thread
MEMORY_GOAL = 15.0  # percent of the chain's peak

Grid = tuple[int, int]
FULL = (68, 120)  # 1080p in patches of 16


def chain(
    query: torch.Tensor, key: torch.Tensor, grid: Grid, temperature: float, rows: slice = slice(None)
) -> torch.Tensor:
    """The equation, written out: scores and probabilities of all pairs are stored. [B, 2, queries]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    y, x = torch.meshgrid(*(torch.arange(n, device=query.device, dtype=wide) for n in grid), indexing="ij")
    positions = torch.stack((x.flatten(), y.flatten()), -1)
    weights = torch.softmax((query[:, rows] @ key.mT).to(wide) / temperature, -1)
    return (weights @ positions - positions[rows]).mT


def inputs(grid: Grid, channels: int, device: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Features of two frames whose cells match, displaced, with some noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *grid, channels, generator=generator)
    moved = torch.roll(image, (1, 3), (1, 2)) + 2.0 * torch.randn(image.shape, generator=generator)
    return [x.flatten(1, 2).to(device, dtype) for x in (image, moved)]


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Forward and backward time, peak memory."""
    sizes = [((34, 60), 1536)] if quick else [(FULL, 1536), (FULL, 256)]
    for grid, channels in sizes:
        yield from forward_records(grid, channels, device)
    grid, channels = sizes[0]
    yield backward_record((17, 30) if device == "cpu" else grid, channels, device)
    yield memory_record(grid, channels, device)


def forward_records(grid: Grid, channels: int, device: str) -> Iterator[timing.Record]:
    """Time as a multiple of the matrix product alone; bfloat16 features on CUDA, float32 on the CPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    query, key = inputs(grid, channels, device, dtype)
    temperature = 2 * channels**0.5
    scores = torch.empty(1, query.shape[1], query.shape[1], device=device, dtype=dtype)

    def ours(**options: object) -> torch.Tensor:
        return ops.softargmax_flow(query, key, grid, temperature=temperature, **options)

    ways: dict[str, Callable[[], object]] = {
        "product alone": lambda: torch.matmul(query, key.mT, out=scores),
        "chain": lambda: chain(query, key, grid, temperature),
        "ours": ours,
        "ours, details": lambda: ours(details=True),
        "ours, local": lambda: ours(mode="local"),
    }
    with torch.inference_mode():
        rows = slice(0, 512)  # matches so sharp that float32 scores alone move them by a thousandth of a cell
        truth = chain(query.double(), key.double(), grid, temperature, rows)
        for name, flow in (("chain", ways["chain"]()), ("details", ours(details=True).flow), ("ours", ours())):
            error = timing.gate(name, flow.flatten(2)[..., rows], truth, atol=3e-3)
        timing.gate("local", ours(mode="local"), ours(mode="local", backend="reference"), atol=3e-3)
        work, ceilings = roofline.count(ways["chain"]), roofline.Ceilings.of(device, dtype)
        times = timing.interleaved(ways, repeats=5 if device == "cpu" else 30, warmup=1, device=device)
    product = times.pop("product alone")
    for name, time in times.items():
        yield timing.Record(
            OP,
            f"{name}, {_spell(grid)}, C={channels}, {str(dtype).removeprefix('torch.')}",
            time.median / product.median,
            "x the product",
            goal=TIME_GOAL if name == "ours" and channels >= 1024 and device == "cpu" else None,
            at_least=False,
            details={**work.details(time, ceilings), "product": product.milliseconds(), "max_error": error},
        )


def backward_record(grid: Grid, channels: int, device: str) -> timing.Record:
    """Gradients of both frames' features, float32; the forward pass is not timed."""
    pair, temperature = inputs(grid, channels, device), channels / 8  # soft: sharp matches have no gradient
    upstream = torch.randn(1, 2, grid[0] * grid[1], device=device)
    graphs = {}
    for name, function in (("ours", ops.softargmax_flow), ("chain", chain)):
        leaves = [x.detach().requires_grad_() for x in pair]
        graphs[name] = function(*leaves, grid, temperature=temperature).flatten(2), leaves

    def backward(name: str) -> tuple[torch.Tensor, ...]:
        flow, leaves = graphs[name]
        return torch.autograd.grad(flow, leaves, upstream, retain_graph=True)

    errors = [
        timing.gate(f"gradient of {which}", ours, truth, atol=1e-3 * truth.abs().max().item())
        for which, ours, truth in zip(("query", "key"), backward("ours"), backward("chain"), strict=True)
    ]
    calls = {name: lambda name=name: backward(name) for name in graphs}
    times = timing.interleaved(calls, repeats=5, device=device)
    flop = roofline.count(calls["chain"]).flop  # the bytes are ours: the chain reads probabilities it stored
    work, ceilings = roofline.Work(flop, roofline.count(calls["ours"]).moved), roofline.Ceilings.of(device)
    return timing.Record(
        OP,
        f"backward, {_spell(grid)}, C={channels}",
        times["chain"].median / times["ours"].median,
        "x chain",
        details={
            **work.details(times["ours"], ceilings),
            "chain": work.share(times["chain"], ceilings),
            "max_error": max(errors),
        },
    )


def memory_case(way: str, grid: list[int], channels: int, device: str = "cpu") -> Callable[[], torch.Tensor]:
    """For :func:`timing.peak_bytes`: one forward pass, ``"ours"`` or ``"chain"``."""
    query, key = inputs(tuple(grid), channels, device)
    function = ops.softargmax_flow if way == "ours" else chain

    def call(rows: int = grid[0]) -> torch.Tensor:
        with torch.inference_mode():
            cells = rows * grid[1]
            return function(query[:, :cells], key[:, :cells], (rows, grid[1]), temperature=channels**0.5)

    call(1)  # libraries loaded
    return call


def memory_record(grid: Grid, channels: int, device: str) -> timing.Record:
    """Peak beyond the features."""
    case = {"grid": list(grid), "channels": channels, "device": device}
    ours, plain = (
        timing.peak_bytes("benchmarks.softargmax_flow:memory_case", way=way, **case) for way in ("ours", "chain")
    )
    return timing.Record(
        OP,
        f"peak memory, {_spell(grid)}, C={channels}",
        100 * ours / plain,
        "% of chain",
        goal=MEMORY_GOAL if grid == FULL else None,
        at_least=False,
        details={"peak_mib": round(ours / 2**20, 1), "chain_peak_mib": round(plain / 2**20, 1)},
    )


def _spell(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"
