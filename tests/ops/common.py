"""What the op tests share: implementations to run, inputs in many layouts, tight comparison, poisoned memory."""

import contextlib
import dataclasses

import pytest
import torch

import daflow_ext.ops
from daflow_ext import backends

ISAS = ("generic", "avx2", "avx512", "avx512_bf16")
COMPILED = [*(f"cpu-{isa}" for isa in ISAS), pytest.param("cuda", marks=pytest.mark.gpu)]
IMPLEMENTATIONS = ["reference", *COMPILED]

BAD_POSITIONS = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, 1000.0, -1000.0)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One backend (and CPU instruction set) of every op; arguments are moved to its device, results come back."""

    backend: str
    device: str

    def __call__(self, op, *args, **options):
        moved = [_to(arg, self.device) for arg in args]
        return _to(getattr(daflow_ext.ops, op)(*moved, backend=self.backend, **options), "cpu")

    def skip_unless(self, *dtypes):
        """Skip the test where a dtype does not run on this device."""
        if self.device == "cuda" and torch.float64 in dtypes:
            pytest.skip("float64 runs on the CPU only")


def _to(value, device):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return type(value)(_to(item, device) for item in value) if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def implementation(name):
    """The Implementation called e.g. ``reference``, ``cpu`` (best instruction set), ``cpu-avx2`` or ``cuda``."""
    backend, _, isa = name.partition("-")
    device = "cuda" if backend == "cuda" else "cpu"
    able, reason = backends.can_run("corr_pyramid", backend, device)
    if not able:
        pytest.skip(reason)
    if not isa:
        yield Implementation(backend, device)
        return
    best = torch.ops.daflow_ext.cpu_capability()
    if ISAS.index(isa) > ISAS.index(best):
        pytest.skip(f"this machine has {best}, not {isa}")
    torch.ops.daflow_ext.set_cpu_capability(isa)
    try:
        yield Implementation(backend, device)
    finally:
        torch.ops.daflow_ext.set_cpu_capability(best)


def ramp_like(tensor):
    """A gradient without symmetries: -1 ... 1 over the elements."""
    ramp = torch.linspace(-1, 1, tensor.numel(), dtype=torch.float64)
    return ramp.reshape(tensor.shape).to(tensor.dtype)


def gradients(function, *inputs, upstream=None):
    """Outputs of ``function(*inputs)`` (a tensor or a list) and the gradients of all inputs, in one list."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    outputs = [out] if isinstance(out, torch.Tensor) else list(out)
    upstream = [ramp_like(output) for output in outputs] if upstream is None else upstream
    grads = torch.autograd.grad(outputs, leaves, upstream, materialize_grads=True)
    return [*(output.detach() for output in outputs), *grads]


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_close(result, truth, accumulated=torch.float32, name="result"):
    """Equal up to sums of the accumulator's type and one rounding to the dtype of the result."""
    assert result.shape == truth.shape, f"{name}: {list(result.shape)} is not {list(truth.shape)}"
    step = {torch.float32: 0, torch.float64: 0, torch.float16: 2**-11, torch.bfloat16: 2**-8}[result.dtype]
    sums = 1e-13 if accumulated == result.dtype == torch.float64 else 1e-6
    scale = truth.abs().max().item() if truth.numel() else 0.0
    torch.testing.assert_close(
        result.double(), truth.double(), rtol=step, atol=sums * scale + step * 1e-3, msg=lambda text: f"{name}: {text}"
    )


def assert_all_close(results, truths, accumulated=torch.float32):
    for index, (result, truth) in enumerate(zip(results, truths, strict=True)):
        assert_close(result, truth, accumulated, f"result {index}")


def positions(batch, height, width, centres=None, spread=2.5, dtype=torch.float32):
    """[B, (N,) 2, H, W]: the pixel grid plus a displacement that leaves the image here and there; x next to y."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shape = (batch, 2) if centres is None else (batch, centres, 2)
    coords = (torch.stack([x, y]) + spread * torch.randn(*shape, height, width) + 0.1).to(dtype)
    return coords.movedim(-3, -1).contiguous().movedim(-1, -3)


def lay_out(fmap, layout):
    """The values of a [B, C, H, W] tensor in another memory layout (`expanded`: those of one image)."""
    if layout == "channels_last":
        return fmap.contiguous(memory_format=torch.channels_last)
    if layout == "expanded":
        return fmap[:1].expand(fmap.shape)
    if layout == "transposed":
        return fmap.transpose(2, 3).contiguous().transpose(2, 3)
    batch, channels, height, width = fmap.shape
    if layout == "sliced":  # every second row of rows that are too long, channels that are not ours in between
        view = fmap.new_full((batch, 2 * channels, 2 * height + 1, width + 3), float("nan"))[:, ::2, 1::2, 1:-2]
    elif layout == "sliced_channels_last":
        room = fmap.new_full((batch, 2 * height + 1, width + 2, channels + 5), float("nan"))
        view = room.permute(0, 3, 1, 2)[:, 3 : 3 + channels, 1::2, 1:-1]
    else:
        assert layout == "contiguous", layout
        return fmap.contiguous()
    return view.copy_(fmap)


def assert_same_bits_for_any_threads(function):
    """``function`` returns tensors: the same bits again, on 1, 2 and 3 threads."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = function()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for result, expected in zip(function(), first, strict=True):
                assert torch.equal(result, expected), f"other bits on {count} threads"
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def poisoned_memory(*ops):
    """Fresh memory holds NaN, and it is checked that this reached the outputs that the named operators allocate."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        with torch.profiler.profile() as profile:
            yield
    finally:
        torch.use_deterministic_algorithms(False)
    for op in ops:
        calls = [event for event in profile.events() if event.name == f"daflow_ext::{op}"]
        assert calls, f"{op} did not run"
        for call in calls:
            assert any(event.name == "aten::fill_" for event in _descendants(call)), f"{op}: memory was not poisoned"


def _descendants(event):
    for child in event.cpu_children:
        yield child
        yield from _descendants(child)
