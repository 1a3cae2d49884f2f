"""CorrBlock against RAFT's all-pairs block in plain PyTorch: time, memory, backward.

``python -m benchmarks.corr_block --crossover`` measures what ``memory="auto"`` rests on
(daflow_ext/correlation/memory.py); on CUDA the records hold the same.
"""

import argparse
import collections
import functools
import math
from collections.abc import Callable, Iterator

import torch

from daflow_ext.correlation import CorrBlock, memory

from . import roofline, timing
from .opponents import runnable
from .plain import PlainCorrBlock

OP = "corr_block"
CHANNELS, LEVELS, RADIUS, LOOKUPS = 256, 4, 4, 12

# (height, width) of the feature grid: the speed-up over the plain block that a grid must reach.
GOALS = {(55, 128): 4.0, (68, 120): 5.0, (135, 240): 15.0}
MEMORY_GOAL = 5.0  # percent of the plain block's peak
BACKWARD_GOAL = 3.0
GFLOPS_GOAL = 45.0
LARGE, LARGE_GOAL = (270, 480), 1e3  # the grid of 2160 x 3840, MB

Grid = tuple[int, int]


def inputs(grid: Grid, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Two feature maps and the coordinates of LOOKUPS refinement steps: a smooth flow of a few pixels, refined."""
    generator = torch.Generator().manual_seed(0)
    height, width = grid
    fmap1, fmap2 = (torch.randn(1, CHANNELS, height, width, generator=generator) for _ in range(2))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    flow = smooth_flow(grid, generator)
    coords = [torch.stack([x, y]) + flow * (step / LOOKUPS) for step in range(1, LOOKUPS + 1)]
    return fmap1.to(device), fmap2.to(device), [c.to(device) for c in coords]


def smooth_flow(grid: Grid, generator: torch.Generator) -> torch.Tensor:
    """[1, 2, H, W]: a few pixels, between 4 x 6 random nodes."""
    coarse = 8 * torch.randn(1, 2, 4, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=grid, mode="bicubic", align_corners=True)


def windows(
    block: Callable, fmap1: torch.Tensor, fmap2: torch.Tensor, coords: list[torch.Tensor], **options: object
) -> Iterator[torch.Tensor]:
    """Build, then one lookup after the other."""
    corr = block(fmap1, fmap2, LEVELS, RADIUS, **options)
    for position in coords:
        yield corr(position)


def last(*arguments: object, **options: object) -> torch.Tensor:
    """The last of the windows; nobody keeps the others."""
    return collections.deque(windows(*arguments, **options), maxlen=1).pop()


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Everything the drop-in promises, one record each."""
    grids = [(55, 128)] if quick else list(GOALS)
    for grid in grids:
        yield from forward_records(grid, device, repeats=3 if quick or grid == (135, 240) else 5)
    for grid in grids:
        yield from memory_records(grid, device)
    yield large_record(device)
    yield from unmoved_records((55, 128), device)
    yield lookup_record((55, 128), device)
    for lookups in (1,) if quick else (1, LOOKUPS):
        yield backward_record((55, 128), device, lookups)
    if device == "cuda":
        for grid in ((16, 24), (30, 40), (46, 62), (55, 128)):
            for lookups in (12, 32):
                yield from crossover_records(grid, lookups, device)


def forward_records(grid: Grid, device: str, repeats: int) -> Iterator[timing.Record]:
    """Build plus LOOKUPS lookups, without gradients, for every way of keeping the correlation."""
    fmap1, fmap2, coords = inputs(grid, device)
    maps = fmap1, fmap2, coords
    ways = {
        "on_the_fly": lambda: last(CorrBlock, *maps, memory="on_the_fly"),
        "volume": lambda: last(CorrBlock, *maps, memory="volume"),
        "plain": lambda: last(PlainCorrBlock, *maps),
    }
    if grid == (135, 240):
        del ways["volume"]  # 5.6 GB beside the plain block's 8.4 GB
    else:
        opponents = runnable(device, follows=True)
        ways = _right({o.name: lambda o=o: last(o.build, *maps) for o in opponents}, ways["plain"]) | ways
    with torch.inference_mode():
        errors = _gate_all({name: call() for name, call in ways.items()}, fmap1, fmap2, coords[-1])
        # at these sizes less arithmetic than all pairs
        work = roofline.count(lambda: list(windows(CorrBlock, *maps, memory="on_the_fly")))
        ceilings = roofline.Ceilings.of(device)
        times = timing.interleaved(ways, repeats=repeats, warmup=0, device=device)
    automatic = CorrBlock(fmap1, fmap2, LEVELS, RADIUS, lookups=LOOKUPS).memory
    for name in list(ways)[:-1]:
        default = ", the default here" if name == automatic else ""
        yield timing.Record(
            OP,
            f"build + {LOOKUPS} lookups, {_spell(grid)}, {name}{default}",
            times["plain"].median / times[name].median,
            "x plain",
            goal=GOALS[grid] if name == "on_the_fly" else None,
            details={
                **work.details(times[name], ceilings),
                "plain": work.share(times["plain"], ceilings),
                "max_error": errors[name],
                "channels": CHANNELS,
                "grid": list(grid),
                "way": name,
            },
        )


@torch.inference_mode()
def _right(opponents: dict[str, Callable[[], torch.Tensor]], truth: Callable) -> dict[str, Callable[[], torch.Tensor]]:
    """The opponents that run and agree with the truth; says of the others what they did."""
    expected, found = truth(), {}
    for name, call in opponents.items():
        try:
            timing.gate(name, call(), expected, atol=2e-4)
        except (RuntimeError, TypeError, timing.WrongResultError) as error:
            print(f"{OP:16} {name} is left out: {str(error).strip().splitlines()[0]}")
        else:
            found[name] = call
    return found


def _gate_all(
    results: dict[str, torch.Tensor], fmap1: torch.Tensor, fmap2: torch.Tensor, coords: torch.Tensor
) -> dict[str, float]:
    """Every field against the plain one, and some rows against double precision, where ours are the best."""
    errors = {}
    for name, result in results.items():
        timing.gate(name, result, results["plain"], atol=2e-4)
        ours = name in ("on_the_fly", "volume")
        errors[name] = _gate_rows(name, result, fmap1, fmap2, coords, atol=2e-5 if ours else 2e-4)
    return errors


def _gate_rows(
    name: str, result: torch.Tensor, fmap1: torch.Tensor, fmap2: torch.Tensor, coords: torch.Tensor, atol: float
) -> float:
    """Some rows against the plain block in double precision."""
    rows = [0, 1, fmap1.shape[-2] // 2, fmap1.shape[-2] - 1]
    truth = PlainCorrBlock(fmap1[:, :, rows].double(), fmap2.double(), LEVELS, RADIUS)(coords[:, :, rows].double())
    return timing.gate(name, result[:, :, rows], truth, atol=atol)


def memory_case(block: str, grid: list[int], layout: str, device: str = "cpu") -> Callable[[], torch.Tensor]:
    """For :func:`timing.peak_bytes`: build and two lookups of ``"plain"`` or of a way of CorrBlock."""
    with torch.inference_mode():
        fmap1, fmap2, coords = inputs(tuple(grid), device)
        fmap1, fmap2 = (fmap.contiguous(memory_format=getattr(torch, layout)) for fmap in (fmap1, fmap2))

    def call(size: int | None = None) -> torch.Tensor:
        with torch.inference_mode():
            f1, f2, position = (t[..., :size, :size] for t in (fmap1, fmap2, coords[0]))
            corr = PlainCorrBlock(f1, f2) if block == "plain" else CorrBlock(f1, f2, memory=block)
            corr(position)
            return corr(position)

    call(16)  # libraries loaded, thread pools made
    return call


def memory_records(grid: Grid, device: str) -> Iterator[timing.Record]:
    """Peak memory beyond the feature maps, output included, against the plain block's.

    From channels_last features, which daflow_ext's RAFT makes on the CPU, and from contiguous ones, of which CorrBlock
    needs copies.
    """
    pixels = grid[0] * grid[1]
    volume = 4 * pixels * sum((grid[0] >> level) * (grid[1] >> level) for level in range(LEVELS))
    case = {"grid": list(grid), "device": device}
    plain = timing.peak_bytes("benchmarks.corr_block:memory_case", block="plain", layout="contiguous_format", **case)
    for layout in ("channels_last", "contiguous_format"):
        ours = timing.peak_bytes("benchmarks.corr_block:memory_case", block="on_the_fly", layout=layout, **case)
        yield timing.Record(
            OP,
            f"peak memory, {_spell(grid)}, {layout}",
            100 * ours / plain,
            "% of plain",
            goal=MEMORY_GOAL,
            at_least=False,
            details={
                "grid": list(grid),
                "way": "on_the_fly",
                "layout": layout,
                "peak_mib": round(ours / 2**20, 1),
                "plain_peak_mib": round(plain / 2**20, 1),
                "volume_pyramid_mib": round(volume / 2**20, 1),
                "percent_of_volume_pyramid": round(100 * ours / volume, 2),
                "output_mib": round(4 * pixels * LEVELS * (2 * RADIUS + 1) ** 2 / 2**20, 1),
            },
        )


def large_record(device: str) -> timing.Record:
    """Build and two lookups of a 4K frame: the peak beyond the feature maps, and those."""
    options = {"block": "on_the_fly", "grid": list(LARGE), "layout": "channels_last", "device": device}
    peak = timing.peak_bytes("benchmarks.corr_block:memory_case", **options)
    maps = 2 * 4 * CHANNELS * LARGE[0] * LARGE[1]
    return timing.Record(
        OP,
        f"peak memory with the feature maps, {_spell(LARGE)} (2160x3840)",
        (peak + maps) / 1e6,
        "MB",
        goal=LARGE_GOAL,
        at_least=False,
        details={"grid": list(LARGE), "way": "on_the_fly", "peak_mib": round(peak / 2**20, 1), "maps_mib": maps >> 20},
    )


def unmoved_records(grid: Grid, device: str) -> Iterator[timing.Record]:
    """One level around every pixel itself, for the opponents that know no coordinates."""
    opponents = runnable(device, follows=False)
    if not opponents:
        return
    fmap1, fmap2, _ = inputs(grid, device)
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    coords = torch.stack([x, y])[None].float().to(device)
    calls = {o.name: lambda o=o: o.build(fmap1, fmap2, 1, RADIUS)(coords) for o in opponents}
    plain = functools.partial(PlainCorrBlock(fmap1, fmap2, 1, RADIUS), coords)
    ways = {"ours": lambda: CorrBlock(fmap1, fmap2, 1, RADIUS, memory="on_the_fly")(coords)} | _right(calls, plain)
    with torch.inference_mode():
        timing.gate("ours", ways["ours"](), plain(), atol=2e-4)
        flop = math.prod(grid) * (2 * RADIUS + 1) ** 2 * 2 * CHANNELS  # whole pixels need no corners beyond the window
        work, ceilings = roofline.Work(flop, roofline.count(ways["ours"]).moved), roofline.Ceilings.of(device)
        times = timing.interleaved(ways, repeats=5, device=device)
    ours = times.pop("ours")
    for name, time in times.items():
        case = f"one level around every pixel, {_spell(grid)}"
        details = {**work.details(ours, ceilings), name: work.share(time, ceilings), "grid": list(grid)}
        yield timing.Record(OP, case, time.median / ours.median, f"x {name}", details=details)


def lookup_record(grid: Grid, device: str) -> timing.Record:
    """Useful arithmetic of one lookup."""
    fmap1, fmap2, coords = inputs(grid, device)
    with torch.inference_mode():
        block = CorrBlock(fmap1, fmap2, LEVELS, RADIUS, memory="on_the_fly")
        _gate_rows("lookup", block(coords[0]), fmap1, fmap2, coords[0], atol=2e-5)
        work, ceilings = roofline.count(lambda: block(coords[0])), roofline.Ceilings.of(device)
        time = timing.interleaved({"lookup": lambda: block(coords[0])}, repeats=15, warmup=2, device=device)["lookup"]
    return timing.Record(
        OP,
        f"one lookup, {_spell(grid)}",
        work.flop / time.median / 1e9,
        "useful GFLOP/s",
        goal=GFLOPS_GOAL if device == "cpu" and torch.ops.daflow_ext.cpu_capability().startswith("avx512") else None,
        details={**work.details(time, ceilings), "channels": CHANNELS},
    )


def backward_record(grid: Grid, device: str, lookups: int) -> timing.Record:
    """Gradients of fmap1, fmap2 and coords of build plus ``lookups`` lookups; the forward pass is not timed."""
    fmap1, fmap2, coords = inputs(grid, device)
    upstream = torch.randn(1, LEVELS * (2 * RADIUS + 1) ** 2, *grid, device=device)

    def forward(block: Callable, **options: object) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        leaves = [tensor.clone().requires_grad_() for tensor in (fmap1, fmap2, *coords[:lookups])]
        corr = block(*leaves[:2], LEVELS, RADIUS, **options)
        return [corr(position) for position in leaves[2:]], leaves

    graphs = {"ours": forward(CorrBlock, memory="on_the_fly"), "plain": forward(PlainCorrBlock)}

    def backward(name: str) -> tuple[torch.Tensor, ...]:
        outputs, leaves = graphs[name]
        return torch.autograd.grad(outputs, leaves, [upstream] * len(outputs), retain_graph=True)

    # The gradient of a coordinate jumps at whole pixels of a level, where the rounding of the plain block's
    # normalisation decides on which side it is.
    steady = [torch.ones_like(fmap1), torch.ones_like(fmap2), *map(_steady, coords[:lookups])]
    errors = [
        timing.gate(f"gradient {index}", ours * seen, plain * seen, atol=1e-5 * plain.abs().max().item())
        for index, (ours, plain, seen) in enumerate(zip(backward("ours"), backward("plain"), steady, strict=True))
    ]
    ways = {name: lambda name=name: backward(name) for name in graphs}
    work, ceilings = roofline.count(ways["ours"]), roofline.Ceilings.of(device)
    times = timing.interleaved(ways, repeats=3, warmup=0, device=device)
    return timing.Record(
        OP,
        f"backward of build + {lookups} lookup{'s' if lookups > 1 else ''}, {_spell(grid)}",
        times["plain"].median / times["ours"].median,
        "x plain",
        goal=BACKWARD_GOAL,
        details={
            **work.details(times["ours"], ceilings),
            "plain": work.share(times["plain"], ceilings),
            "max_error": max(errors),
            "channels": CHANNELS,
        },
    )


def _steady(coords: torch.Tensor) -> torch.Tensor:
    """1 where a coordinate is more than a ten-thousandth of a pixel from a whole pixel of every level, else 0."""
    apart = [(coords / 2**level - (coords / 2**level).round()).abs() > 1e-4 for level in range(LEVELS)]
    return torch.stack(apart).all(0).to(coords)


def crossover_records(grid: Grid, lookups: int, device: str) -> Iterator[timing.Record]:
    """Time on the fly over time with a stored volume: above 1 the volume is the faster way."""
    for dtype in (torch.float32, torch.float16):
        fmap1, fmap2, coords = inputs(grid, device)
        fmap1, fmap2 = (fmap.to(dtype, memory_format=torch.channels_last) for fmap in (fmap1, fmap2))
        steps = [coords[step % LOOKUPS] for step in range(lookups)]
        arguments, kinds = (CorrBlock, fmap1, fmap2, steps), ("on_the_fly", "volume")
        ways = {way: functools.partial(last, *arguments, memory=way) for way in kinds}
        with torch.inference_mode():
            timing.gate("on the fly", ways["on_the_fly"](), ways["volume"](), atol=5e-5)
            works = [roofline.count(lambda way=way: list(windows(*arguments, memory=way))) for way in kinds]  # noqa: B023
            work, ceilings = min(works, key=lambda work: work.flop), roofline.Ceilings.of(device, dtype)
            times = timing.interleaved(ways, repeats=7, device=device)
        pixels = grid[0] * grid[1] * sum((grid[0] >> level) * (grid[1] >> level) for level in range(LEVELS))
        yield timing.Record(
            OP,
            f"build + {lookups} lookups, {_spell(grid)}, {str(dtype)[6:]}, on the fly",
            times["on_the_fly"].median / times["volume"].median,
            "x volume",
            details={
                **work.details(times["on_the_fly"], ceilings),
                "volume": work.share(times["volume"], ceilings),
                "volume_bytes": 4 * pixels,
                "channels": CHANNELS,
            },
        )


def crossover(grids: tuple[Grid, ...] = ((16, 24), (24, 32), (30, 40), (36, 52), (36, 64), (46, 62))) -> None:
    """Print what ``memory="auto"`` rests on: CPU_LIMIT in daflow_ext/correlation/memory.py.

    The size is the volume's products over those of all windows; the limit separates the sizes at which the volume is
    the faster way (time on the fly / time with the volume above 1) from the others.
    """
    rows = []
    for channels in (128, 256):
        for grid in grids:
            for lookups in (12, 32):
                with timing.threads(1):
                    rows.append(_crossover_of(grid, channels, lookups))
    for size, line in sorted(rows):
        print(f"size {size:.2f}: {line}")
    print(f"in use: {memory.CPU_LIMIT}")


def _crossover_of(grid: Grid, channels: int, lookups: int) -> tuple[float, str]:
    fmap1, fmap2, coords = inputs(grid)
    fmap1, fmap2 = (fmap[:, :channels].contiguous(memory_format=torch.channels_last) for fmap in (fmap1, fmap2))

    def infer(way: str) -> None:
        with torch.inference_mode():
            corr = CorrBlock(fmap1, fmap2, LEVELS, RADIUS, memory=way)
            for step in range(lookups):
                corr(coords[step % LOOKUPS])

    def train(way: str) -> None:
        leaves = [fmap.detach().requires_grad_() for fmap in (fmap1, fmap2)]
        corr = CorrBlock(*leaves, LEVELS, RADIUS, memory=way)
        outputs = [corr(coords[step % LOOKUPS]) for step in range(lookups)]
        torch.autograd.grad(outputs, leaves, outputs)

    words = []
    for task in (infer, train):
        ways = {way: lambda way=way, task=task: task(way) for way in ("on_the_fly", "volume")}
        seconds = {way: time.median for way, time in timing.interleaved(ways, repeats=5).items()}
        words.append(
            f"{task.__name__} {seconds['on_the_fly'] * 1e3:6.1f} / {seconds['volume'] * 1e3:6.1f} ms = "
            f"{seconds['on_the_fly'] / seconds['volume']:.2f}"
        )
    level_pixels = sum((grid[0] >> level) * (grid[1] >> level) for level in range(LEVELS))
    size = level_pixels / (lookups * LEVELS * (2 * RADIUS + 2) ** 2)
    return size, f"C={channels} {_spell(grid)} {lookups} lookups, " + ", ".join(words)


def _spell(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crossover", action="store_true", required=True, help="time both ways over many grids")
    parser.parse_args()
    crossover()
