"""Tile sizes and launch options of every Triton kernel, per architecture; nothing is tuned unless asked for.

``CONFIGS`` holds the defaults. tests/kernels/check_triton_compile.py compiles each for its architecture and refuses
register spills. :func:`autotune` times candidates on the GPU at hand and keeps the fastest for the rest of the process.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import triton

_ANY = 2**31  # whatever the width


class Config(NamedTuple):
    """How a kernel is launched.

    Args:
        tile: block sizes, in the order of the kernel's BLOCK_ parameters.
        descriptors: load through tensor descriptors (TMA) what has a fitting address and fitting strides.
        look_ahead: issue the products with the next block of keys before the softmax of the current one.
        max_free: leave out the running maximum where the scores are known to be small enough.
        block_lists: walk over a list of key tiles instead of runs of tokens; through pointers, without look-ahead.
        programs: per multiprocessor, each taking tiles in turn (a persistent grid); 0 is one program per tile.
    The last four are for the forward kernel of st_attention only.
    """

    tile: tuple[int, ...]
    num_warps: int
    num_stages: int
    descriptors: bool = False
    max_registers: int | None = None
    look_ahead: bool = True
    max_free: bool = True
    block_lists: bool = False
    programs: int = 0

    @property
    def options(self) -> dict[str, int | bool | None]:
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.max_registers,
            "enable_fp_fusion": True,
        }


_HALF, _TF32, _TF32X3 = "half", "tf32", "tf32x3"
_PLAIN, _LISTED = {"look_ahead": False}, {"look_ahead": False, "block_lists": True}

# kernel -> least compute capability -> kind of product -> widest head -> config. 8.6, 8.9 and 12.0 have 99 KB of shared
# memory per program, which the entries of 80 and 120 keep to.
CONFIGS: dict[str, dict[int, dict[str, dict[int, Config]]]] = {
    "st_attention": {
        80: {
            _HALF: {64: Config((128, 64), 8, 3), 128: Config((128, 32), 8, 3)},
            _TF32: {64: Config((64, 32), 4, 2), 128: Config((32, 16), 4, 2)},
            _TF32X3: {64: Config((64, 16), 4, 1), 128: Config((32, 16), 4, 1)},
        },
        90: {
            _HALF: {64: Config((128, 128), 8, 2, True), 128: Config((128, 64), 8, 2, True)},
            _TF32: {64: Config((64, 64), 4, 2, True), 128: Config((64, 32), 4, 2, True)},
            _TF32X3: {64: Config((64, 16), 4, 1, True), 128: Config((64, 16), 4, 1, True)},
        },
        100: {
            _HALF: {64: Config((128, 128), 8, 2, True, 240), 128: Config((128, 64), 8, 2, True)},
            _TF32: {64: Config((128, 32), 8, 2, True), 128: Config((128, 32), 8, 2, True)},
            _TF32X3: {64: Config((128, 32), 8, 2, True), 128: Config((128, 16), 8, 1, True)},
        },
        120: {
            _HALF: {64: Config((128, 64), 8, 2, True), 128: Config((128, 32), 8, 2, True)},
            _TF32: {64: Config((64, 32), 4, 2, True), 128: Config((32, 32), 4, 2, True)},
            _TF32X3: {64: Config((64, 32), 4, 2, True), 128: Config((32, 16), 4, 1, True)},
        },
    },
    "st_attention_pointers": {  # unaligned streams, reference frames, frames with gaps between them
        80: {
            _HALF: {64: Config((128, 64), 8, 3), 128: Config((128, 32), 8, 2)},
            _TF32: {64: Config((64, 32), 4, 2), 128: Config((32, 16), 4, 2)},
            _TF32X3: {64: Config((64, 16), 4, 1), 128: Config((32, 16), 4, 1)},
        },
    },
    "st_attention_repair": {  # rows that a wrong bound was given for; a persistent grid where it does not spill
        80: {
            _HALF: {64: Config((128, 32), 8, 2, programs=2, **_PLAIN), 128: Config((128, 32), 8, 2, **_PLAIN)},
            _TF32: {64: Config((32, 32), 4, 1, **_PLAIN), 128: Config((16, 16), 4, 1, **_PLAIN)},
            _TF32X3: {64: Config((32, 16), 4, 1, **_PLAIN), 128: Config((16, 16), 4, 1, **_PLAIN)},
        },
    },
    "st_attention_backward_queries": {
        80: {
            _HALF: {64: Config((128, 32), 8, 2), 128: Config((64, 32), 8, 2)},
            _TF32: {64: Config((64, 32), 8, 2), 128: Config((32, 32), 4, 2)},
            _TF32X3: {64: Config((32, 32), 4, 2), 128: Config((16, 32), 4, 1)},
        },
        90: {
            _HALF: {64: Config((128, 64), 8, 2), 128: Config((64, 64), 4, 2)},
            _TF32: {64: Config((64, 32), 4, 2), 128: Config((64, 32), 8, 2)},
            _TF32X3: {64: Config((64, 32), 4, 2), 128: Config((64, 16), 4, 1)},
        },
        100: {
            _HALF: {64: Config((128, 64), 8, 2), 128: Config((64, 64), 4, 2)},
            _TF32: {64: Config((64, 32), 4, 2), 128: Config((64, 32), 4, 2)},
            _TF32X3: {64: Config((64, 32), 8, 2), 128: Config((64, 16), 8, 1)},
        },
        120: {
            _HALF: {64: Config((128, 32), 8, 2), 128: Config((64, 32), 8, 2)},
            _TF32: {64: Config((64, 32), 4, 2), 128: Config((32, 32), 4, 2)},
            _TF32X3: {64: Config((32, 32), 4, 2), 128: Config((16, 32), 4, 1)},
        },
    },
    "st_attention_backward_keys": {
        80: {
            _HALF: {64: Config((32, 128), 8, 2), 128: Config((32, 64), 8, 2)},
            _TF32: {64: Config((32, 64), 8, 2), 128: Config((32, 32), 4, 2)},
            _TF32X3: {64: Config((32, 32), 4, 2), 128: Config((32, 16), 4, 1)},
        },
        90: {
            _HALF: {64: Config((64, 128), 8, 2), 128: Config((64, 64), 8, 2)},
            _TF32: {64: Config((32, 64), 4, 2), 128: Config((32, 32), 4, 2)},
            _TF32X3: {64: Config((32, 128), 8, 2), 128: Config((16, 64), 4, 1)},
        },
        100: {
            _HALF: {64: Config((64, 128), 8, 2), 128: Config((64, 64), 8, 2)},
            _TF32: {64: Config((32, 64), 4, 2), 128: Config((32, 64), 8, 2)},
            _TF32X3: {64: Config((32, 64), 8, 2), 128: Config((16, 64), 8, 1)},
        },
        120: {
            _HALF: {64: Config((32, 128), 8, 2), 128: Config((32, 64), 8, 2)},
            _TF32: {64: Config((32, 64), 8, 1), 128: Config((32, 32), 4, 2)},
            _TF32X3: {64: Config((32, 32), 4, 2), 128: Config((32, 16), 4, 1)},
        },
    },
    "softargmax_flow": {
        80: {
            _HALF: {_ANY: Config((128, 64, 64), 8, 3)},
            _TF32: {_ANY: Config((64, 64, 32), 8, 3)},
            _TF32X3: {_ANY: Config((64, 64, 32), 8, 2)},
        },
        90: {
            _HALF: {_ANY: Config((128, 128, 64), 8, 3)},
            _TF32: {_ANY: Config((128, 64, 32), 8, 3)},
            _TF32X3: {_ANY: Config((64, 64, 32), 8, 2)},
        },
    },
    "softargmax_flow_window": {  # a radius, or local mode
        80: {
            _HALF: {_ANY: Config((64, 64, 64), 8, 3)},
            _TF32: {_ANY: Config((64, 64, 32), 8, 3)},
            _TF32X3: {_ANY: Config((64, 64, 32), 8, 2)},
        },
        90: {
            _HALF: {_ANY: Config((128, 64, 64), 8, 3)},
            _TF32: {_ANY: Config((64, 64, 32), 8, 3)},
            _TF32X3: {_ANY: Config((64, 64, 32), 8, 2)},
        },
    },
    "softargmax_flow_backward_query": {
        80: {
            _HALF: {_ANY: Config((64, 32, 64, 256), 8, 2)},
            _TF32: {_ANY: Config((64, 32, 32, 128), 8, 2)},
            _TF32X3: {_ANY: Config((64, 32, 32, 64), 8, 2)},
        },
        90: {
            _HALF: {_ANY: Config((64, 64, 64, 256), 8, 2)},
            _TF32: {_ANY: Config((64, 32, 32, 128), 4, 2)},
            _TF32X3: {_ANY: Config((64, 32, 32, 64), 4, 2)},
        },
    },
    "softargmax_flow_backward_key": {
        80: {
            _HALF: {_ANY: Config((32, 64, 64, 256), 8, 2)},
            _TF32: {_ANY: Config((32, 64, 32, 128), 8, 2)},
            _TF32X3: {_ANY: Config((32, 64, 32, 64), 8, 2)},
        },
        90: {
            _HALF: {_ANY: Config((32, 64, 64, 256), 8, 2)},
            _TF32: {_ANY: Config((32, 64, 32, 128), 4, 2)},
            _TF32X3: {_ANY: Config((32, 64, 32, 64), 4, 2)},
        },
    },
    "qk_norm": {80: {kind: {_ANY: Config((32,), 4, 1)} for kind in (_HALF, _TF32, _TF32X3)}},
    "qk_norm_backward": {80: {kind: {_ANY: Config((16, 16), 4, 1)} for kind in (_HALF, _TF32, _TF32X3)}},
}

# 12.0 has the shared memory and the matrix instructions of 8.x; 10.0 wants fewer registers in the wide epilogue.
for _kernel in (
    "softargmax_flow",
    "softargmax_flow_window",
    "softargmax_flow_backward_query",
    "softargmax_flow_backward_key",
):
    CONFIGS[_kernel][120] = dict(CONFIGS[_kernel][80])
CONFIGS["softargmax_flow_backward_key"][120] |= {_HALF: {_ANY: Config((32, 32, 64, 256), 8, 2)}}
CONFIGS["softargmax_flow"][100] = {**CONFIGS["softargmax_flow"][90], _HALF: {_ANY: Config((128, 64, 64), 8, 3)}}

# Launch options that autotune may take instead of the default of an architecture; the compile gate keeps out those that
# spill. None has been timed: which one is fastest is for the GPU at hand to say.
CANDIDATES: dict[str, dict[int, dict[str, Config]]] = {
    "st_attention": {  # 16-bit types, heads of up to 64 channels
        80: {
            "look-ahead 128x64, persistent": Config((128, 64), 8, 3, programs=1),
            "plain 128x64": Config((128, 64), 8, 3, **_PLAIN),
            "plain 128x64, persistent": Config((128, 64), 8, 3, programs=2, **_PLAIN),
            "plain 64x64, 4 warps": Config((64, 64), 4, 3, **_PLAIN),
            "block lists 128x64": Config((128, 64), 8, 3, **_LISTED),
        },
        90: {
            "plain 128x128": Config((128, 128), 8, 3, True, **_PLAIN),
            "plain 128x64": Config((128, 64), 8, 3, True, **_PLAIN),
            "plain 128x64, 4 warps": Config((128, 64), 4, 3, True, **_PLAIN),
            "plain 256x64": Config((256, 64), 8, 2, True, **_PLAIN),
            "plain 128x64, persistent": Config((128, 64), 8, 3, True, programs=2, **_PLAIN),
            "block lists 128x128": Config((128, 128), 8, 2, **_LISTED),
            "block lists 128x64": Config((128, 64), 8, 3, **_LISTED),
        },
        100: {
            "look-ahead 128x128, persistent": Config((128, 128), 8, 2, True, programs=1),
            "plain 128x128": Config((128, 128), 8, 3, True, **_PLAIN),
            "plain 128x64": Config((128, 64), 8, 3, True, **_PLAIN),
            "plain 128x64, 4 warps": Config((128, 64), 4, 3, True, **_PLAIN),
            "plain 128x128, persistent": Config((128, 128), 8, 3, True, programs=1, **_PLAIN),
            "block lists 128x128": Config((128, 128), 8, 2, **_LISTED),
            "block lists 128x64": Config((128, 64), 8, 3, **_LISTED),
        },
        120: {
            "look-ahead 128x64, persistent": Config((128, 64), 8, 2, True, programs=1),
            "plain 128x64": Config((128, 64), 8, 2, True, **_PLAIN),
            "plain 128x64, 4 warps": Config((128, 64), 4, 2, True, **_PLAIN),
            "plain 128x64, persistent": Config((128, 64), 8, 2, True, programs=2, **_PLAIN),
            "block lists 128x64": Config((128, 64), 8, 2, **_LISTED),
        },
    },
}

# Small blocks, so that tests meet several of them and their tails.
INTERPRETED = {
    "st_attention": Config((32, 16), 1, 1),
    "st_attention_pointers": Config((32, 16), 1, 1),
    "st_attention_repair": Config((16, 16), 1, 1, programs=2, **_PLAIN),
    "st_attention_backward_queries": Config((16, 32), 1, 1),
    "st_attention_backward_keys": Config((32, 16), 1, 1),
    "qk_norm": Config((16,), 1, 1),
    "qk_norm_backward": Config((8, 2), 1, 1),
    "softargmax_flow": Config((16, 32, 32), 1, 1),
    "softargmax_flow_window": Config((16, 32, 32), 1, 1),
    "softargmax_flow_backward_query": Config((16, 32, 32, 32), 1, 1),
    "softargmax_flow_backward_key": Config((32, 16, 32, 32), 1, 1),
}

_overrides: dict[str, Config] = {}


def architecture() -> int:
    """Compute capability of the current device as one number, 90 for 9.0; 0 under the interpreter."""
    if triton.knobs.runtime.interpret:
        return 0
    return int(triton.runtime.driver.active.get_current_target().arch)


def multiprocessors(device: torch.device) -> int:
    """Of the device; 2 where there is none, so that tests have more tiles than programs of a persistent grid."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def config(kernel: str, dtype: torch.dtype, width: int = 0) -> Config:
    """The launch options of a kernel on the current device.

    Raises:
        RuntimeError: the device is older than every entry.
    """
    if kernel in _overrides:
        return _overrides[kernel]
    arch = architecture()
    if arch == 0:
        return INTERPRETED[kernel]
    by_width = _newest(CONFIGS, kernel, arch)[_HALF if dtype.itemsize == 2 else dot_precision(dtype)]
    return by_width[min(widest for widest in by_width if widest >= width)]


def candidates(kernel: str, dtype: torch.dtype, width: int = 0) -> dict[str, Config]:
    """What :func:`autotune` may try on the current device, by name; "default" first."""
    found = {"default": config(kernel, dtype, width)}
    if kernel in CANDIDATES and dtype.itemsize == 2 and width <= 64 and architecture():
        found |= _newest(CANDIDATES, kernel, architecture())
    return found


def _newest(table: dict[str, dict[int, dict]], kernel: str, arch: int) -> dict:
    """The entry of the newest architecture that is not newer than ``arch``."""
    known = [least for least in table[kernel] if least <= arch]
    if not known:
        raise RuntimeError(
            f"{kernel}: the triton kernels need compute capability 8.0 or newer, this device has {arch / 10}"
        )
    return table[kernel][max(known)]


@contextlib.contextmanager
def use(**configs: Config) -> Iterator[None]:
    """Launch the named kernels with these configs inside the block: ``with use(st_attention=Config(...)):``."""
    before = dict(_overrides)
    _overrides.update(configs)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


def autotune(
    kernel: str, call: Callable[[], torch.Tensor | Sequence[torch.Tensor]], tried: Sequence[Config], atol: float
) -> Config:
    """Keep the fastest of the configs ``tried`` for ``kernel`` in this process, and return it.

    Args:
        call: runs the kernel on a typical input and returns its outputs.
        tried: such as ``candidates(kernel, dtype, width).values()``.
        atol: a candidate whose outputs differ by more from those of the default config is refused.
    """
    with use():
        _overrides.pop(kernel, None)
        truth = _as_list(call())
    best, best_time = None, float("inf")
    for candidate in tried:
        with use(**{kernel: candidate}):
            try:
                outputs = _as_list(call())
            except triton.runtime.OutOfResources:
                continue
            if any((a.float() - b.float()).abs().max() > atol for a, b in zip(outputs, truth, strict=True)):
                continue
            elapsed = triton.testing.do_bench(call, return_mode="median")
        if elapsed < best_time:
            best, best_time = candidate, elapsed
    if best is None:
        raise RuntimeError(f"{kernel}: no candidate ran and agreed with the default config")
    _overrides[kernel] = best
    return best


def _as_list(outputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def dot_precision(dtype: torch.dtype) -> str:
    """How ``tl.dot`` multiplies float32: in TF32 only if ``torch.backends.cuda.matmul`` allows torch.matmul that, too.

    Otherwise in three TF32 products per product, which keep about 21 bits and still run on tensor cores.
    """
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "tf32x3"
    return "tf32"


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Launch on the device of the tensors; the current stream is taken by the launcher."""
    if device.type != "cuda":  # the interpreter
        yield
        return
    with torch.cuda.device(device):
        yield
