"""st_attention beside PyTorch's attentions (cuDNN, flash, efficient, math, FlexAttention), on the streams of the
restoration transformer: three streams of 3 frames at 512x512, 720p and 1080p, 24 heads of 64 channels.

Ours runs with every candidate of ``kernels/triton/tuning.py``, each also "max-free": q and k are normalised, so that
their scores have a bound. PyTorch's attentions get streams that are joined already; "with cat" adds the joining and
splitting a model needs. TFLOP/s count 4 N^2 d per head forward and 10 N^2 d backward, of all pairs, also where a window
leaves some out; :mod:`benchmarks.roofline` says what their share of the roofline is.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from daflow_ext import ops, reference

from . import roofline, timing

OP = "st_attention"
DENSE_GOAL = 0.95  # of the best of PyTorch's
WINDOW_GOAL = 2.0  # times the best of PyTorch's dense attentions, window 1 of 9 frames
HEADS, WIDTH, TEXT = 24, 64, 333
SIZES = {"512x512": 1024, "720p": 3600, "1080p": 8160}  # tokens per frame
VENDORS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
MATH_TOKENS = 16384  # the scores of more than these take tens of gigabytes
SCORE_BOUND = 1.01 * WIDTH**0.5  # of normalised q and k

Streams = list[torch.Tensor]


class Way(NamedTuple):
    """One attention: the forward pass, a list of outputs, and the leaves of its gradients."""

    call: Callable[[], Streams]
    leaves: Streams


def inputs(frames: int, tokens: int, device: str, heads: int = HEADS) -> tuple[Streams, Streams, Streams]:
    """q and k (normalised) and v of the HQ, LQ and text streams; random, as zeros run cooler than real values do."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shapes = [(1, frames, count, heads, WIDTH) for count in (tokens, tokens, TEXT)]
    q, k, v = ([torch.randn(shape, generator=generator, device=device) for shape in shapes] for _ in range(3))
    q, k = ([F.rms_norm(stream, (WIDTH,)) for stream in streams] for streams in (q, k))
    return tuple([stream.to(dtype).requires_grad_() for stream in streams] for streams in (q, k, v))


def joined(streams: Streams) -> torch.Tensor:
    """[B, heads, N, d]."""
    return torch.cat([stream.flatten(1, 2) for stream in streams], 1).transpose(1, 2)


def split(out: torch.Tensor, like: Streams) -> Streams:
    parts = out.transpose(1, 2).split([stream.shape[1] * stream.shape[2] for stream in like], 1)
    return [part.reshape(stream.shape) for part, stream in zip(parts, like, strict=True)]


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """On CUDA everything the op promises; on the CPU the same, small, and that no mask is stored."""
    if device == "cpu":
        yield from dense_records("small", 2, 64, device, flex=not quick, heads=4)
        yield from window_records(9, 64, device, heads=4, flex=False)
        yield memory_record(frames=16, tokens=256)
        return
    # compiling takes most of the time: when quick, candidates and FlexAttention only where they matter most
    yield from dense_records("512x512", 3, SIZES["512x512"], device, candidates=None if quick else "", flex=not quick)
    if not quick:
        yield from dense_records("720p", 3, SIZES["720p"], device)
    yield from dense_records("1080p", 3, SIZES["1080p"], device)
    yield from window_records(9, SIZES["512x512" if quick else "720p"], device)


# ---- ways -----------------------------------------------------------------------------------------------------------


def our_ways(q: Streams, k: Streams, v: Streams, *, candidates: str | None, **options) -> dict[str, Way]:
    """The default launch options and the candidates whose names begin with ``candidates``; each online and max-free."""
    leaves = [*q, *k, *v]
    found = {"ours": Way(lambda: ops.st_attention(q, k, v, **options), leaves)}
    if q[0].device.type == "cpu":
        return found
    from daflow_ext.kernels.triton import tuning

    def run(config, score_bound):
        with tuning.use(st_attention=config):
            return ops.st_attention(q, k, v, score_bound=score_bound, **options)

    for name, config in tuning.candidates(OP, q[0].dtype, WIDTH).items():
        label = "ours" if name == "default" else f"ours: {name}"
        if name == "default" or (candidates is not None and name.startswith(candidates)):
            for end, bound in (("", None), (", max-free", SCORE_BOUND)):
                found[label + end] = Way(functools.partial(run, config, bound), leaves)
    return found


def their_ways(q: Streams, k: Streams, v: Streams, *, flex: bool) -> dict[str, Way]:
    """Every back end of scaled_dot_product_attention and FlexAttention, on joined streams and "with cat"."""
    leaves = [*q, *k, *v]
    packed = [joined(x).detach().requires_grad_() for x in (q, k, v)]
    found: dict[str, Way] = {}

    def add(name: str, attend: Callable[..., torch.Tensor]) -> None:
        found[name] = Way(lambda: [attend(*packed)], packed)
        found[f"{name} with cat"] = Way(lambda: split(attend(*map(joined, (q, k, v))), q), leaves)

    if q[0].device.type == "cpu":
        add("sdpa", F.scaled_dot_product_attention)
    else:
        for name, backend in VENDORS.items():
            if name != "math" or packed[0].shape[2] <= MATH_TOKENS:
                add(name, functools.partial(_sdpa, backend))
    if flex:
        add("flex", _flex())
    return found


def _sdpa(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


@functools.cache
def _flex() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex_window(q: Streams, k: Streams, v: Streams, window: int) -> Way:
    """FlexAttention with a block mask of the frames; making the mask is not timed."""
    device = q[0].device
    frames = [torch.arange(s.shape[1], dtype=torch.int8, device=device).repeat_interleave(s.shape[2]) for s in q]
    frame = torch.cat(frames)
    packed = [joined(x).detach() for x in (q, k, v)]

    def near(_batch, _head, query, key):
        return (frame[query] - frame[key]).abs() <= window

    @functools.cache
    def mask():
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(near, None, None, len(frame), len(frame), device=device)

    return Way(lambda: [_flex()(*packed, block_mask=mask())], packed)


def runnable(ways: Mapping[str, Way]) -> dict[str, Way]:
    """Those that run here; says of the others why not."""
    found = {}
    for name, way in ways.items():
        try:
            way.call()
        except Exception as error:  # a back end that this machine lacks, a candidate too large for it
            print(f"{OP:16} {name} does not run here: {(str(error).strip() or repr(error)).splitlines()[0]}")
        else:
            found[name] = way
    return found


def check(ways: Mapping[str, Way], q: Streams, k: Streams, v: Streams, window: int | None = None) -> dict[str, float]:
    """Error of every way on the first tokens of the HQ stream against double precision."""
    frames = k[0].shape[1] if window is None else window + 1  # what frame 0 sees
    rows = [q[0][:, :1, :16].detach().double()]
    keys, values = ([x[:, :frames].detach().double().flatten(1, 2) for x in streams] for streams in (k, v))
    truth = reference.st_attention(rows, keys, values)[0]  # [1, 1, 16, heads, d]
    errors = {}
    for name, way in ways.items():
        out = way.call()
        out = out[0] if out[0].dim() == 5 else split(out[0], q)[0]
        errors[name] = timing.gate(name, out[:, :1, :16], truth, atol=4e-3 if out.dtype == torch.bfloat16 else 1e-5)
    return errors


# ---- records --------------------------------------------------------------------------------------------------------


def dense_records(
    size: str,
    frames: int,
    tokens: int,
    device: str,
    *,
    candidates: str | None = "",
    flex: bool = True,
    heads: int = HEADS,
) -> Iterator[timing.Record]:
    """Forward, then backward, of every way; the fastest of ours as a multiple of the best of PyTorch's."""
    q, k, v = inputs(frames, tokens, device, heads)
    case = f"{size} x {frames}, N={frames * (2 * tokens + TEXT)}"
    flop = 4 * (frames * (2 * tokens + TEXT)) ** 2 * WIDTH * heads
    moved = sum(stream.nbytes for stream in q)  # and so of k, v, the output, and the gradient of each
    theirs = runnable(their_ways(q, k, v, flex=flex))
    with torch.no_grad():
        ways = runnable(our_ways(q, k, v, candidates=candidates)) | theirs
        errors = check(ways, q, k, v)
        calls = {name: way.call for name, way in ways.items()}
        yield from _versus(f"forward, {case}", calls, roofline.Work(flop, 4 * moved), errors, device)

    graphs = {name: (way.call(), way.leaves) for name, way in {"ours": ways["ours"], **theirs}.items()}

    def backward(name: str) -> tuple[torch.Tensor, ...]:
        outputs, leaves = graphs[name]
        return torch.autograd.grad(outputs, leaves, outputs, retain_graph=True)

    graphs = {name: graphs[name] for name in runnable({n: Way(lambda n=n: backward(n), []) for n in graphs})}
    truth = next(name for name in graphs if name.endswith("with cat"))
    ours, other = (torch.cat([grad.flatten(1, 2) for grad in backward(name)], 1) for name in ("ours", truth))
    errors = {"ours": timing.gate("gradients", ours, other, atol=2e-2 * other.abs().max().item())}
    calls = {name: functools.partial(backward, name) for name in graphs}
    yield from _versus(f"backward, {case}", calls, roofline.Work(5 * flop // 2, 8 * moved), errors, device)


def _versus(
    case: str, calls: Mapping[str, Callable], work: roofline.Work, errors: Mapping[str, float], device: str
) -> Iterator[timing.Record]:
    times = timing.interleaved(calls, repeats=10, warmup=2, device=device, budget=15.0)
    ceilings = roofline.Ceilings.of(device, torch.bfloat16 if device == "cuda" else torch.float32)
    for name, time in times.items():
        details = {
            **work.details(time, ceilings),
            "peak_bytes": timing.peak_here(calls[name], device),
            "max_error": errors.get(name),
        }
        yield timing.Record(OP, f"{case}, {name}", work.flop / time.median / 1e12, "TFLOP/s", details=details)
    medians = {name: time.median for name, time in times.items()}
    theirs = {
        name: seconds for name, seconds in medians.items() if not name.startswith("ours") and " with " not in name
    }
    if theirs:
        ours = min((name for name in medians if name.startswith("ours")), key=medians.get)
        best = min(theirs, key=theirs.get)
        ratio = medians[best] / medians[ours]
        goal = DENSE_GOAL if device == "cuda" else None  # on the CPU ours is PyTorch's, with cat
        yield timing.Record(OP, f"{case}, fastest of ours", ratio, f"x {best}", goal=goal, details={"way": ours})


def window_records(
    frames: int, tokens: int, device: str, heads: int = HEADS, flex: bool = True
) -> Iterator[timing.Record]:
    """A window of 1 against the best dense attention (3.2 times the pairs at 9 frames) and FlexAttention's window."""
    q, k, v = inputs(frames, tokens, device, heads)
    with torch.no_grad():
        windowed = runnable(our_ways(q, k, v, candidates="block lists", window=1))
        if flex:
            windowed |= runnable({"flex": flex_window(q, k, v, 1)})
        errors = check(windowed, q, k, v, window=1)
        dense = our_ways(q, k, v, candidates=None) | runnable(their_ways(q, k, v, flex=flex))
        calls = {f"window: {name}": way.call for name, way in windowed.items()}
        calls |= {name: way.call for name, way in dense.items()}
        times = timing.interleaved(calls, repeats=5, warmup=2, device=device, budget=15.0)
    best = min(dense, key=lambda name: times[name].median)
    pairs = (3 * frames - 2) * (2 * tokens + TEXT) ** 2  # a frame sees itself and its one or two neighbours
    work = roofline.Work(4 * pairs * WIDTH * heads, 4 * sum(stream.nbytes for stream in q))
    ceilings = roofline.Ceilings.of(device, q[0].dtype)
    for name in windowed:
        time = times[f"window: {name}"]
        yield timing.Record(
            OP,
            f"window 1 of {frames} frames of {tokens} tokens, forward, {name}",
            times[best].median / time.median,
            f"x dense ({best})",
            goal=WINDOW_GOAL if name == "ours" else None,
            details={
                **work.details(time, ceilings),
                "dense": work.share(times[best], ceilings),
                "max_error": errors[name],
            },
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
