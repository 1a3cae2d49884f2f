"""qk_norm on the queries and keys of a transformer layer, beside one rms_norm call per stream.

Both move each tensor once in and once out; the share is that of a plain copy in the same process.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from daflow_ext import ops

from . import roofline, timing
from .st_attention import HEADS, SIZES, TEXT, WIDTH

OP = "qk_norm"
FRAMES = 3
EPS = 1e-6


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Forward and backward, on CUDA in bfloat16 at 512x512 and 1080p."""
    if device == "cpu":
        yield from size_records("small", 64, device)
        return
    for size in ("512x512",) if quick else ("512x512", "1080p"):
        yield from size_records(size, SIZES[size], device)


def size_records(size: str, tokens: int, device: str) -> Iterator[timing.Record]:
    """Queries and keys of three streams, six weights."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(1, FRAMES, count, HEADS, WIDTH) for count in (tokens, tokens, TEXT)] * 2
    streams = [torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_() for shape in shapes]
    weights = [torch.rand(WIDTH, generator=generator, device=device).to(dtype).requires_grad_() for _ in shapes]

    ways: dict[str, Callable[[], list[torch.Tensor]]] = {
        "ours": lambda: ops.qk_norm(streams, weights, eps=EPS),
        "rms_norm": lambda: [F.rms_norm(x, (WIDTH,), w, EPS) for x, w in zip(streams, weights, strict=True)],
    }
    atol = 2e-2 if dtype == torch.bfloat16 else 1e-5
    with torch.no_grad():
        errors, results = dict.fromkeys(ways, 0.0), {name: way() for name, way in ways.items()}
        for index, (stream, weight) in enumerate(zip(streams, weights, strict=True)):
            truth = F.rms_norm(stream.double(), (WIDTH,), weight.double(), EPS)
            for name, result in results.items():
                errors[name] = max(errors[name], timing.gate(name, result[index], truth, atol))
        del results
        work = roofline.count(ways["ours"])
        times = timing.interleaved(ways, repeats=20, warmup=3, device=device, budget=10.0)
    yield from _both(f"forward, {size} x {FRAMES}", times, work, errors, device)

    graphs = {name: way() for name, way in ways.items()}

    def backward(name: str) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(graphs[name], [*streams, *weights], graphs[name], retain_graph=True)

    for ours, theirs in zip(backward("ours"), backward("rms_norm"), strict=True):
        timing.gate(
            "gradient", ours, theirs, atol=(3e-2 if dtype == torch.bfloat16 else 1e-4) * theirs.abs().max().item()
        )
    calls = {name: lambda name=name: backward(name) for name in graphs}
    times = timing.interleaved(calls, repeats=20, warmup=3, device=device, budget=10.0)
    work = roofline.Work(work.flop, work.moved * 3 // 2)  # reads inputs and upstream gradients, writes gradients
    yield from _both(f"backward, {size} x {FRAMES}", times, work, {}, device)


def _both(case: str, times: dict, work: roofline.Work, errors: dict, device: str) -> Iterator[timing.Record]:
    ceilings = roofline.Ceilings.of(device)
    share = work.percent(times["ours"].median, ceilings)
    theirs = work.share(times["rms_norm"], ceilings)
    details = {**work.details(times["ours"], ceilings), "rms_norm": theirs, "max_error": errors.get("ours")}
    yield timing.Record(OP, f"{case}, ours", share, "% of a copy", details=details)
    ratio = times["rms_norm"].median / times["ours"].median
    yield timing.Record(OP, f"{case}, ours", ratio, "x rms_norm", details=details)
