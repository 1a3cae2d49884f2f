"""st_attention beside PyTorch's attentions (cuDNN, flash, efficient, FlexAttention), on the streams of the restoration
transformer: three streams of 3 frames at 512x512, 720p and 1080p, 24 heads of 64 channels.

PyTorch's attentions get streams that are joined already; "with cat" adds the joining and splitting a model needs.
TFLOP/s count 4 N^2 d per head forward and 10 N^2 d backward, of all pairs, also where a window leaves some out.
"""

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from daflow_ext import ops, reference

from . import timing

OP = "st_attention"
DENSE_GOAL = 0.95  # of the best of PyTorch's
WINDOW_GOAL = 2.0  # times the best of PyTorch's dense attentions, window 1 of 9 frames
HEADS, WIDTH, TEXT = 24, 64, 333
SIZES = {"512x512": 1024, "720p": 3600, "1080p": 8160}  # tokens per frame
VENDORS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}

Streams = list[torch.Tensor]
Attention = Callable[[Streams, Streams, Streams], Streams]


def inputs(frames: int, tokens: int, device: str, heads: int = HEADS) -> tuple[Streams, Streams, Streams]:
    """q, k and v of the HQ, LQ and text streams; normal values, which do not run cooler than real ones as zeros do."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shapes = [(1, frames, count, heads, WIDTH) for count in (tokens, tokens, TEXT)]
    return tuple(
        [torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_() for shape in shapes]
        for _ in range(3)
    )


def joined(streams: Streams) -> torch.Tensor:
    """[B, heads, N, d]."""
    return torch.cat([stream.flatten(1, 2) for stream in streams], 1).transpose(1, 2)


def split(out: torch.Tensor, like: Streams) -> Streams:
    parts = out.transpose(1, 2).split([stream.shape[1] * stream.shape[2] for stream in like], 1)
    return [part.reshape(stream.shape) for part, stream in zip(parts, like, strict=True)]


def vendor(backend: SDPBackend | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


@functools.cache
def _flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """On CUDA everything the op promises; on the CPU that a window pays, and that no mask is stored."""
    if device == "cpu":
        yield from window_records(frames=9, tokens=64, device=device, heads=4)
        yield memory_record(frames=16, tokens=256)
        return
    for name, tokens in SIZES.items():
        if not quick or name != "1080p":
            yield from dense_records(name, 3, tokens, device)
    yield from window_records(9, SIZES["512x512" if quick else "720p"], device)


def attentions(q: Streams, k: Streams, v: Streams, device: str) -> dict[str, tuple[Callable, list[torch.Tensor]]]:
    """name -> (forward pass returning a list, the leaves of its gradients); only those that run here."""
    leaves = [*q, *k, *v]
    packed = [joined(x).detach().requires_grad_() for x in (q, k, v)]
    found = {"ours": (lambda: ops.st_attention(q, k, v), leaves)}
    candidates: dict[str, tuple[Callable, list[torch.Tensor]]] = {}
    if device == "cpu":
        candidates["sdpa"] = (lambda: [vendor(None, *packed)], packed)
    else:
        for name, backend in VENDORS.items():
            candidates[name] = (lambda backend=backend: [vendor(backend, *packed)], packed)
        candidates["flex"] = (lambda: [_flex()(*packed)], packed)
    candidates["default with cat"] = (lambda: split(vendor(None, *map(joined, (q, k, v))), q), leaves)
    for name, (call, inputs_of_call) in candidates.items():
        try:
            call()
        except RuntimeError as error:  # a backend that this GPU or build lacks
            print(f"{OP:16} {name} does not run here: {str(error).splitlines()[0]}")
        else:
            found[name] = (call, inputs_of_call)
    return found


def check(found: dict[str, tuple[Callable, list[torch.Tensor]]], q: Streams, k: Streams, v: Streams, **options) -> dict:
    """Error of every attention on the first tokens of the HQ stream against double precision."""
    rows = [q[0][:, :1, :16].detach().double()]
    keys, values = ([x.detach().double().flatten(1, 2) for x in streams] for streams in (k, v))
    if options:  # a window: what frame 0 sees
        near = options["window"] + 1
        keys, values = ([x[:, :near].detach().double().flatten(1, 2) for x in streams] for streams in (k, v))
    truth = reference.st_attention(rows, keys, values)[0]  # [1, 1, 16, heads, d]
    errors = {}
    for name, (call, _) in found.items():
        out = call()
        out = out[0] if out[0].dim() == 5 else split(out[0], q)[0]
        errors[name] = timing.gate(name, out[:, :1, :16], truth, atol=4e-3 if out.dtype == torch.bfloat16 else 1e-5)
    return errors


def dense_records(size: str, frames: int, tokens: int, device: str) -> Iterator[timing.Record]:
    """Forward, then backward, of every attention; ours as a multiple of the best of PyTorch's."""
    q, k, v = inputs(frames, tokens, device)
    count = frames * (2 * tokens + TEXT)
    found = attentions(q, k, v, device)
    with torch.no_grad():
        errors = check(found, q, k, v)
        ways = {name: call for name, (call, _) in found.items()}
        forward = timing.interleaved(ways, repeats=10, warmup=3, device=device)
    yield from _versus(f"forward, {size} x {frames}, N={count}", forward, 4 * count**2 * WIDTH * HEADS, errors)

    graphs = {name: (call(), leaves) for name, (call, leaves) in found.items()}

    def backward(name: str) -> tuple[torch.Tensor, ...]:
        outputs, leaves = graphs[name]
        return torch.autograd.grad(outputs, leaves, outputs, retain_graph=True)

    ours = torch.cat([grad.flatten(1, 2) for grad in backward("ours")], 1)
    truth = torch.cat([grad.flatten(1, 2) for grad in backward("default with cat")], 1)
    scale = truth.abs().max().item()
    errors = {"ours": timing.gate("gradients", ours, truth, atol=2e-2 * scale)}
    times = timing.interleaved({name: lambda name=name: backward(name) for name in graphs}, repeats=10, device=device)
    yield from _versus(f"backward, {size} x {frames}, N={count}", times, 10 * count**2 * WIDTH * HEADS, errors)


def _versus(case: str, times: dict[str, timing.Timing], flop: int, errors: dict) -> Iterator[timing.Record]:
    for name, time in times.items():
        details = {**time.milliseconds(), "max_error": errors.get(name)}
        yield timing.Record(OP, f"{case}, {name}", flop / time.median / 1e12, "TFLOP/s", details=details)
    theirs = {name: time.median for name, time in times.items() if name not in ("ours", "default with cat")}
    if theirs:
        best = min(theirs, key=theirs.get)
        ratio = theirs[best] / times["ours"].median
        yield timing.Record(OP, f"{case}, ours", ratio, f"x {best}", goal=DENSE_GOAL)


def window_records(frames: int, tokens: int, device: str, heads: int = HEADS) -> Iterator[timing.Record]:
    """A window of 1 against the best dense attention: the pairs left out are a factor of 3.2 at 9 frames."""
    q, k, v = inputs(frames, tokens, device, heads)
    with torch.no_grad():
        windowed = {"window 1": (lambda: ops.st_attention(q, k, v, window=1), [])}
        errors = check(windowed, q, k, v, window=1)
        ways = {name: call for name, (call, _) in {**attentions(q, k, v, device), **windowed}.items()}
        times = timing.interleaved(ways, repeats=5, warmup=2, device=device)
    ours = times.pop("window 1")
    best = min(times, key=lambda name: times[name].median)
    yield timing.Record(
        OP,
        f"window 1 of {frames} frames of {tokens} tokens, forward",
        times[best].median / ours.median,
        f"x dense ({best})",
        goal=WINDOW_GOAL,
        details={**ours.milliseconds(), "dense": times[best].milliseconds(), "max_error": errors["window 1"]},
    )


def memory_case(frames: int, tokens: int) -> Callable[[], Streams]:
    """For :func:`timing.peak_bytes`: forward and backward with window, reference frame and weights; one head."""

    def prepare(frames: int) -> Callable[[], Streams]:
        shapes = [(1, frames, tokens, 1, 16), (1, 1, 64, 1, 16)]
        q, k, v = ([torch.randn(shape).requires_grad_() for shape in shapes] for _ in range(3))

        def call() -> Streams:
            out = ops.st_attention(q, k, v, window=1, reference_frames=(0,), stream_weights=[1, frames])
            return [*out, *torch.autograd.grad(out, [*q, *k, *v], out)]

        return call

    prepare(3)()  # libraries loaded
    return prepare(frames)


def memory_record(frames: int, tokens: int) -> timing.Record:
    """Peak of a windowed call beside the bytes that a mask of all pairs would take."""
    peak = timing.peak_bytes("benchmarks.st_attention:memory_case", frames=frames, tokens=tokens)
    mask = (frames * tokens + 64) ** 2  # one byte per pair
    return timing.Record(
        OP,
        f"peak memory, window 1 of {frames} frames of {tokens} tokens",
        100 * peak / mask,
        "% of an N x N mask",
        goal=50.0,
        at_least=False,
        details={"peak_mib": round(peak / 2**20, 1), "mask_mib": round(mask / 2**20, 1)},
    )
