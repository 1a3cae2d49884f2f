"""qk_norm on the queries and keys of a transformer layer, beside one rms_norm call per stream.

Both move each tensor once in and once out; the share is that of a plain copy in the same process.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from daflow_ext import ops

from . import timing
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
    moved = 2 * sum(stream.numel() * stream.element_size() for stream in streams)

    ways: dict[str, Callable[[], list[torch.Tensor]]] = {
        "ours": lambda: ops.qk_norm(streams, weights, eps=EPS),
        "rms_norm": lambda: [F.rms_norm(x, (WIDTH,), w, EPS) for x, w in zip(streams, weights, strict=True)],
    }
    truth = F.rms_norm(streams[0].detach().double(), (WIDTH,), weights[0].detach().double(), EPS)
    with torch.no_grad():
        errors = {
            name: timing.gate(name, way()[0], truth, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)
            for name, way in ways.items()
        }
        times = timing.interleaved(ways, repeats=20, warmup=3, device=device, budget=10.0)
    yield from _both(f"forward, {size} x {FRAMES}", times, moved, errors, device)

    graphs = {name: way() for name, way in ways.items()}

    def backward(name: str) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(graphs[name], [*streams, *weights], graphs[name], retain_graph=True)

    for ours, theirs in zip(backward("ours"), backward("rms_norm"), strict=True):
        timing.gate(
            "gradient", ours, theirs, atol=(3e-2 if dtype == torch.bfloat16 else 1e-4) * theirs.abs().max().item()
        )
    calls = {name: lambda name=name: backward(name) for name in graphs}
    times = timing.interleaved(calls, repeats=20, warmup=3, device=device, budget=10.0)
    yield from _both(f"backward, {size} x {FRAMES}", times, moved * 3 // 2, {}, device)


def _both(case: str, times: dict, moved: int, errors: dict, device: str) -> Iterator[timing.Record]:
    share = 100 * moved / times["ours"].median / timing.copy_ceiling(device)
    theirs = times["rms_norm"].milliseconds()
    details = {**times["ours"].milliseconds(), "rms_norm": theirs, "max_error": errors.get("ours"), "bytes": moved}
    yield timing.Record(OP, f"{case}, ours", share, "% of a copy", details=details)
    ratio = times["rms_norm"].median / times["ours"].median
    yield timing.Record(OP, f"{case}, ours", ratio, "x rms_norm", details=details)
