"""CorrBlock and AlternateCorrBlock: RAFT's correlation classes on the compiled ops."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .. import backends, ops
from ..ops import _check
from . import memory as memory_choice

MEMORY = ("auto", "volume", "on_the_fly")

# Bytes of a map that the CPU reads in the caller's layout: a copy of a larger one saves a fiftieth of the time of
# twelve lookups (135 x 240, 256 channels, float32); of smaller ones it saves nothing, and is much of the memory.
_READ_AS_IT_IS = 16 << 20


class CorrBlock:
    """Multi-level correlation of two feature maps, looked up around coordinates: RAFT's ``CorrBlock``.

    Equivalent to: RAFT's ``CorrBlock(fmap1, fmap2, num_levels, radius)``, and its descendants' (GMA, SKFlow, MEMFOF,
    SEA-RAFT ...). Channel ``l*n*n + a*n + b`` with n = 2 radius + 1 is the correlation, over sqrt(C), with fmap2 at
    (x/2^l + a - radius, y/2^l + b - radius) of the l times pooled map: the slow window index a moves x. Bilinear,
    zero outside. Beyond the original: finite where a level has a side of 1 or 0 and for non-finite coordinates
    (zeros), half precision features, fmap2 of another size than fmap1, gradients without a stored volume.

    Args:
        fmap1, fmap2: [B, C, H, W] and [B, C, H2, W2]; float32, float16, bfloat16 or float64.
        num_levels, radius: positional as in RAFT, or by the names ``corr_levels`` and ``corr_radius``; or the third
            argument is an object with those two fields (SEA-RAFT's ``args``).
        memory: ``"on_the_fly"`` keeps only the feature maps, O(B H W C); ``"volume"`` stores every pair of pixels,
            O(B H W H2 W2), and reads it; ``"auto"`` takes the faster one that fits into a quarter of the free memory
            (rule and measurement in :mod:`daflow_ext.correlation.memory`), logs it once, and is ``"on_the_fly"`` under
            torch.compile. The attribute ``memory`` tells what was chosen.
        backend: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"cuda"``; see :mod:`daflow_ext.backends`.
        lookups: how many calls to expect, a hint for ``memory="auto"``.
        out_dtype: dtype of the output; float32 as in RAFT whatever the features are.
    Gradients: fmap1, fmap2, coords (and dilation).
    Raises:
        ValueError, TypeError: shapes, dtypes or devices that disagree, an empty batch, unknown options.
        RuntimeError: the named backend cannot run.
    Source: RAFT (Teed & Deng, ECCV 2020, arXiv 2003.12039), section 3.2.
    """

    def __init__(
        self,
        fmap1: torch.Tensor,
        fmap2: torch.Tensor,
        num_levels: int = 4,
        radius: int = 4,
        *,
        corr_levels: int | None = None,
        corr_radius: int | None = None,
        memory: str = "auto",
        backend: str = "auto",
        lookups: int = 12,
        out_dtype: torch.dtype = torch.float32,
    ):
        self.num_levels, self.radius = _levels_and_radius(num_levels, radius, corr_levels, corr_radius)
        _check_maps(fmap1, fmap2)
        if memory not in MEMORY:
            raise ValueError(f"CorrBlock: memory must be one of {', '.join(MEMORY)}, got {memory!r}")
        _check.output_dtype("CorrBlock", out_dtype, fmap1.device)
        self.backend, self.out_dtype = backend, out_dtype
        # The forward CPU kernel reads any layout; CUDA's and the backward would copy to this one at every lookup.
        small = fmap1.numel() * fmap1.element_size() <= _READ_AS_IT_IS
        as_it_is = fmap1.device.type == "cpu" and not fmap1.requires_grad and small
        self.fmap1 = fmap1 if as_it_is else fmap1.contiguous(memory_format=torch.channels_last)
        self.fmap2_pyramid = _pyramid(fmap2, self.num_levels, backend)
        self.memory = self._choose_memory(lookups) if memory == "auto" else memory
        self._volumes: list[torch.Tensor] | None = None
        self._maps = self._stored_volumes() if self.memory == "volume" else self.fmap2_pyramid  # what lookups read
        self._ones: tuple[torch.Tensor, int] | None = None  # the dilation last seen to be all ones, and its version

    def __call__(self, coords: torch.Tensor, dilation: torch.Tensor | None = None) -> torch.Tensor:
        """The windows around ``coords``.

        Args:
            coords: [B, 2, H, W] float32, pixels of fmap2, channel 0 = x, 1 = y (pixel grid plus flow).
            dilation: [B, 1, H, W], stretches the window offsets of each pixel (SEA-RAFT); any real values. A tensor of
                ones costs one check on its first use; anything else reads four taps per sample instead of sharing them.
        Returns:
            [B, num_levels * (2 radius + 1)^2, H, W], contiguous.
        """
        if not isinstance(coords, torch.Tensor) or coords.dim() != 4:
            raise ValueError(f"CorrBlock: coords must be a tensor [B, 2, H, W] (x, then y), got {_spell(coords)}")
        if dilation is not None:
            _check_dilation(dilation, coords)
        if dilation is None or self._all_ones(dilation):
            return self._lookup(self._maps, coords, self.radius)
        centres = self._dilated_centres(coords, dilation)
        samples = [self._lookup([level], centre, 0) for level, centre in zip(self._maps, centres, strict=True)]
        return torch.cat([sample.squeeze(2) for sample in samples], dim=1)

    @property
    def corr_pyramid(self) -> list[torch.Tensor]:
        """The volume as RAFT stores it, L tensors [B*H*W, 1, H_l, W_l]; built on first use unless memory="volume"."""
        batch, _, height, width = self.fmap1.shape
        return [volume.reshape(batch * height * width, 1, *volume.shape[-2:]) for volume in self._stored_volumes()]

    @staticmethod
    def corr(fmap1: torch.Tensor, fmap2: torch.Tensor) -> torch.Tensor:
        """All pairs: [B, C, H, W], [B, C, H2, W2] -> [B, H, W, 1, H2, W2], over sqrt(C), in the dtype of the maps."""
        _check_maps(fmap1, fmap2)
        return _all_pairs(fmap1, fmap2).unsqueeze(3).to(fmap1.dtype)

    def _lookup(self, maps: Sequence[torch.Tensor], coords: torch.Tensor, radius: int) -> torch.Tensor:
        options: dict[str, Any] = {"out_dtype": self.out_dtype, "backend": self.backend}
        with _full_precision(coords.device):
            if self.memory == "volume":
                return ops.volume_lookup(maps, coords, radius, **options)
            return ops.corr_lookup(self.fmap1, maps, coords, radius, **options)

    def _stored_volumes(self) -> list[torch.Tensor]:
        """[B, H, W, H_l, W_l] per level."""
        if self._volumes is None:
            self._volumes = [_all_pairs(self.fmap1, level) for level in self.fmap2_pyramid]
        return self._volumes

    def _choose_memory(self, lookups: int) -> str:
        if torch.compiler.is_compiling():
            return "on_the_fly"  # free memory is no constant to bake into a graph
        batch, _, height, width = self.fmap1.shape
        decision = memory_choice.choose(
            batch * height * width,
            [level.shape[-2] * level.shape[-1] for level in self.fmap2_pyramid],
            radius=self.radius,
            lookups=lookups,
            element_size=max(self.fmap1.element_size(), 4),
            training=self.fmap1.requires_grad or self.fmap2_pyramid[0].requires_grad,
            device=self.fmap1.device,
            compiled=backends.resolve("corr_lookup", self.backend, self.fmap1.device) != "reference",
        )
        memory_choice.log_once((batch, height, width), self.fmap1.device.type, decision)
        return decision

    def _all_ones(self, dilation: torch.Tensor) -> bool:
        """Whether the dilation may be left out; remembered per tensor, as it costs a device synchronisation."""
        if torch.compiler.is_compiling() or dilation.requires_grad:
            return False
        if self._ones is not None and self._ones[0] is dilation and self._ones[1] == dilation._version:
            return True
        if dilation.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        ones = bool((dilation == 1).all())
        self._ones = (dilation, dilation._version) if ones else None
        return ones

    def _dilated_centres(self, coords: torch.Tensor, dilation: torch.Tensor) -> list[torch.Tensor]:
        """Every sample of the window as a centre of its own: per level [B, n*n, 2, H, W] in pixels of that level."""
        steps = torch.arange(-self.radius, self.radius + 1, dtype=coords.dtype, device=coords.device)
        offsets = torch.cartesian_prod(steps, steps)  # [n*n, (x, y)], x slow
        stretched = dilation[:, :, None].to(coords.dtype) * offsets[None, :, :, None, None]
        return [coords[:, None] / 2**level + stretched for level in range(self.num_levels)]


class AlternateCorrBlock(CorrBlock):
    """RAFT's ``AlternateCorrBlock``: :class:`CorrBlock` that never stores a volume.

    The output is float32 as that of CorrBlock; the original returns the dtype of the features (``out_dtype=`` does).
    """

    def __init__(
        self,
        fmap1: torch.Tensor,
        fmap2: torch.Tensor,
        num_levels: int = 4,
        radius: int = 4,
        *,
        corr_levels: int | None = None,
        corr_radius: int | None = None,
        backend: str = "auto",
        out_dtype: torch.dtype = torch.float32,
    ):
        super().__init__(
            fmap1,
            fmap2,
            num_levels,
            radius,
            corr_levels=corr_levels,
            corr_radius=corr_radius,
            memory="on_the_fly",
            backend=backend,
            out_dtype=out_dtype,
        )


def _levels_and_radius(
    num_levels: Any, radius: Any, corr_levels: int | None, corr_radius: int | None
) -> tuple[int, int]:
    if hasattr(num_levels, "corr_levels") and hasattr(num_levels, "corr_radius"):
        num_levels, radius = num_levels.corr_levels, num_levels.corr_radius
    num_levels = num_levels if corr_levels is None else corr_levels
    radius = radius if corr_radius is None else corr_radius
    if not isinstance(num_levels, int) or num_levels < 1:
        raise ValueError(
            "CorrBlock: num_levels must be an integer >= 1 (or an object with corr_levels and corr_radius), "
            f"got {num_levels!r}"
        )
    if not isinstance(radius, int) or radius < 0:
        raise ValueError(f"CorrBlock: radius must be an integer >= 0, got {radius!r}")
    return num_levels, radius


def _check_dilation(dilation: torch.Tensor, coords: torch.Tensor) -> None:
    batch, _, height, width = coords.shape
    if not isinstance(dilation, torch.Tensor) or dilation.shape != (batch, 1, height, width):
        raise ValueError(
            f"CorrBlock: dilation must be a tensor [{batch}, 1, {height}, {width}] as coords, got {_spell(dilation)}"
        )


def _check_maps(fmap1: torch.Tensor, fmap2: torch.Tensor) -> None:
    _check.floating("CorrBlock", "fmap1", fmap1, 4, "[B, C, H, W]")
    _check.floating("CorrBlock", "fmap2", fmap2, 4, "[B, C, H2, W2]")
    _check.same("CorrBlock", "fmap1", fmap1, "fmap2", fmap2)
    if fmap1.shape[:2] != fmap2.shape[:2]:
        raise ValueError(
            f"CorrBlock: fmap1 is {_spell(fmap1)} but fmap2 is {_spell(fmap2)}; batch and channels must agree"
        )
    if 0 in fmap1.shape or 0 in fmap2.shape:
        raise ValueError(f"CorrBlock: empty feature maps, fmap1 is {_spell(fmap1)} and fmap2 is {_spell(fmap2)}")


def _pyramid(fmap2: torch.Tensor, num_levels: int, backend: str) -> list[torch.Tensor]:
    """ops.corr_pyramid, but level 0 is fmap2 itself where that has the layout: the copy would be most of the memory."""
    in_place = fmap2.is_contiguous(memory_format=torch.channels_last) and min(fmap2.shape[-2:]) > 1
    if not in_place or fmap2.dtype in (torch.float16, torch.bfloat16):  # pooled in two steps these would round twice
        return ops.corr_pyramid(fmap2, num_levels, backend=backend)
    if num_levels == 1:
        return [fmap2]
    return [fmap2, *ops.corr_pyramid(F.avg_pool2d(fmap2, 2), num_levels - 1, backend=backend)]


def _all_pairs(fmap1: torch.Tensor, fmap2: torch.Tensor) -> torch.Tensor:
    """<fmap1[:, p], fmap2[:, q]> / sqrt(C) as [B, H, W, H2, W2], in float32 at least."""
    precision = torch.promote_types(fmap1.dtype, torch.float32)
    # The scale goes into the small factor: scaling the product would make a second volume.
    rows = fmap1.to(precision).flatten(2).transpose(1, 2) * fmap1.shape[1] ** -0.5
    with _full_precision(fmap1.device):
        product = torch.bmm(rows, fmap2.to(precision).flatten(2))
    return product.reshape(fmap1.shape[0], *fmap1.shape[-2:], *fmap2.shape[-2:])


def _full_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device_type=device.type, enabled=False)


def _spell(value: object) -> str:
    return _check.spell(value) if isinstance(value, torch.Tensor) else type(value).__name__
