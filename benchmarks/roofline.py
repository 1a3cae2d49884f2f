"""What the machine allows: how much work a calculation is at least, and its time as a share of the roofline.

The work is counted while the calculation runs once, on no clock:

* FLOPs of convolutions, matrix products, attentions and correlation lookups, an addition and a multiplication each;
  what works element by element (activations, norms, interpolation) is not counted.
* Bytes of what it reads and did not make itself (inputs, weights), and of its result, each moved once; nothing for
  what it makes on the way, which could stay in a cache. What a forward pass stored is an input of its backward pass.

The share is the time that these FLOPs would take in a large matrix product, or these bytes in a large copy, whichever
is longer, over the time it took. Both ceilings are measured in the same process, once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from . import timing

Shape = Sequence[int]


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Bytes per second, read and written, of a copy; FLOP per second of a matrix product."""

    copy: float
    product: float

    @classmethod
    def of(cls, device: str, dtype: torch.dtype = torch.float32) -> "Ceilings":
        """``dtype``: of the factors; float32 where the CPU has no faster product of that dtype."""
        if torch.device(device).type == "cpu":
            native = dtype == torch.bfloat16 and torch.ops.daflow_ext.cpu_capability() == "avx512_bf16"
            dtype = dtype if native else torch.float32
        return cls(copy_ceiling(device), product_ceiling(dtype, device, torch.backends.cuda.matmul.allow_tf32))


@dataclasses.dataclass(frozen=True)
class Work:
    """What has to be done at least: FLOPs, and bytes read or written."""

    flop: int
    moved: int

    def percent(self, seconds: float, ceilings: Ceilings) -> float:
        """Share of the roofline, 100 where the machine could do it no faster."""
        return 100 * max(self.flop / ceilings.product, self.moved / ceilings.copy) / seconds

    def share(self, time: timing.Timing, ceilings: Ceilings) -> dict[str, float]:
        """Time and share as they go into a record."""
        return {**time.milliseconds(), "roofline_percent": round(self.percent(time.median, ceilings), 2)}

    def details(self, time: timing.Timing, ceilings: Ceilings) -> dict[str, float]:
        """Those, and what the share is of."""
        return {
            **self.share(time, ceilings),
            "gflop": round(self.flop / 1e9, 4),
            "megabytes": round(self.moved / 1e6, 4),
            "product_gflop_s": round(ceilings.product / 1e9, 1),
            "copy_gb_s": round(ceilings.copy / 1e9, 1),
        }


@functools.cache
def product_ceiling(dtype: torch.dtype, device: str, tf32: bool = False) -> float:
    """FLOP/s of a large square matrix product; ``tf32``: whether torch allows it at this moment."""
    size = 8192 if torch.device(device).type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    time = timing.interleaved({"product": lambda: a @ b}, repeats=10, warmup=3, device=device)["product"]
    return 2 * size**3 / time.median


@functools.cache
def copy_ceiling(device: str) -> float:
    """Bytes per second, read and written, of copying a large tensor."""
    source = torch.empty(2**29 if torch.device(device).type == "cuda" else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    time = timing.interleaved({"copy": lambda: target.copy_(source)}, repeats=10, warmup=3, device=device)["copy"]
    return 2 * source.numel() / time.median


def count(call: Callable[[], object]) -> Work:
    """The work of one call, whose tensors may be in lists and tuples."""
    reads = _Reads()
    with reads, FlopCounterMode(display=False, custom_mapping=_formulas()) as flop:
        result = call()
    written = sum(tensor.nbytes for tensor in _tensors(result))
    return Work(flop.get_total_flops(), reads.total() + written)


class _Reads(TorchDispatchMode):
    """What is read of every storage that was there before: of views that begin alike, the largest."""

    def __init__(self) -> None:
        super().__init__()
        self._views: dict[int, dict[int, int]] = {}  # storage: {offset: bytes}
        self._sizes: dict[int, int] = {}
        self._made: set[int] = set()

    def total(self) -> int:
        """Bytes; of views that overlap no more than there are."""
        return sum(min(sum(views.values()), self._sizes[storage]) for storage, views in self._views.items())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [(_storage(tensor), tensor) for tensor in _tensors((args, kwargs))]
        result = func(*args, **(kwargs or {}))
        found = {_storage(tensor) for tensor in _tensors(result)}
        for storage, tensor in given:
            if storage not in found | self._made:  # a view reads nothing
                views, offset = self._views.setdefault(storage, {}), tensor.storage_offset()
                views[offset] = max(views.get(offset, 0), tensor.nbytes)
                self._sizes[storage] = tensor.untyped_storage().nbytes()
        self._made |= found - {storage for storage, _ in given}
        return result


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _formulas() -> dict[object, Callable[..., int]]:
    """FLOPs, by shapes, of what PyTorch's counter does not know."""
    ops = torch.ops.daflow_ext
    return {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        ops.st_attention: _streams,
        ops.corr_lookup: _lookup,
        ops.corr_lookup_backward: _lookup_backward,
    }


def _attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _streams(q: list[Shape], k: list[Shape], *_: object, **__: object) -> int:
    """Of all pairs, also where a window leaves some out. Streams [B, F, T, heads, d]."""
    queries, keys = (sum(frames * tokens for _, frames, tokens, _, _ in streams) for streams in (q, k))
    batch, _, _, heads, width = q[0]
    return 4 * batch * heads * queries * keys * width


def _lookup(fmap1: Shape, pyramid: list[Shape], coords: Shape, radius: Sequence[int], **_: object) -> int:
    """(2r+2)^2 products of C channels per query, centre and level: the samples of a window share their corners."""
    corners = (2 * radius[0] + 2) * (2 * radius[1] + 2)
    return math.prod(coords) // 2 * len(pyramid) * corners * 2 * fmap1[1]


def _lookup_backward(
    _grad: Shape, fmap1: Shape, pyramid: list[Shape], coords: Shape, radius: Sequence[int], **options: object
) -> int:
    """As many products for every gradient that is asked for."""
    needed = [bool(options[f"need_{name}"]) for name in ("fmap1", "pyramid", "coords")]
    return sum(needed) * _lookup(fmap1, pyramid, coords, radius)
