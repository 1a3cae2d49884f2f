"""Flow files: one reader and one writer, the suffix chooses the format.

========  ========================  =====================================  =============================
format    suffix                    layout in the file                     unknown vectors in the file
========  ========================  =====================================  =============================
flo       .flo (Middlebury)         "PIEH", int32 W, H, float32 (H, W, 2)  1e10 (read: above 1e9 or NaN)
png16     .png (KITTI)              uint16 (H, W, 3): x, y, valid;         valid = 0
                                    pixels = (value - 32768) / 64
npy       .npy                      float32 (2, H, W)                      NaN
npz       .npz, deflate             'flow' float32 (2, H, W),              NaN and valid = False
                                    'valid' bool (H, W)
flo5      .flo5 (Spring), HDF5      'flow' float32 (H, W, 2), gzip 5       NaN
pfm       .pfm (FlyingThings3D)     "PF", float32 (H, W, 3), rows from     NaN
                                    the bottom up, third channel 0
========  ========================  =====================================  =============================

.npy, .npz and .flo5 are also read in the other layout ((H, W, 2) or (2, H, W)); where both would fit, the table holds.
KITTI's PNG rounds to 1/64 pixel and holds -512 to 511.98; all other formats keep float32 exactly.
"""

import os
import pathlib
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch

from ..frames._files import atomic_path, existing_file
from . import _codecs

PathLike = str | os.PathLike
Array = TypeVar("Array", np.ndarray, torch.Tensor)

UNKNOWN_THRESHOLD = 1e9
"""A vector with a component beyond this (or not finite) is unknown, in every format."""

SUFFIXES = {"flo": ".flo", "png16": ".png", "npy": ".npy", "npz": ".npz", "flo5": ".flo5", "pfm": ".pfm"}
"""Format name -> suffix."""

_READERS = {suffix: getattr(_codecs, f"read_{name}") for name, suffix in SUFFIXES.items()}
_WRITERS = {suffix: getattr(_codecs, f"write_{name}") for name, suffix in SUFFIXES.items()}


def known_vectors(flow: Array) -> Array:
    """Where a flow [..., 2, H, W] is known: both components finite and within +-1e9. Returns bool [..., H, W]."""
    inside: Any = abs(flow) <= UNKNOWN_THRESHOLD  # False for NaN
    return inside.all(-3)


def _of_suffix(table: dict, path: pathlib.Path) -> Any:
    try:
        return table[path.suffix.lower()]
    except KeyError:
        known = ", ".join(SUFFIXES.values())
        raise ValueError(f"{path} has no suffix of a flow file; expected one of {known}") from None


@overload
def read_flow(path: PathLike, *, return_valid: Literal[False] = False, unknown: float = ...) -> torch.Tensor: ...


@overload
def read_flow(
    path: PathLike, *, return_valid: Literal[True], unknown: float = ...
) -> tuple[torch.Tensor, torch.Tensor]: ...


def read_flow(
    path: PathLike, *, return_valid: bool = False, unknown: float = float("nan")
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """A flow file as a tensor. The table of formats is in the module's docstring.

    Unknown vectors become ``unknown`` in both components: NaN by default, so that a forgotten mask shows; 0 suits a
    loss that multiplies by the valid map.

    Shapes: float32 [2, H, W]; with ``return_valid=True`` also bool [H, W], True where the flow is known.
    Units: pixels, channel 0 = x to the right, channel 1 = y down.
    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown suffix, another format inside, truncated or too long (with expected and actual bytes).
    """
    path = existing_file(path)
    array, valid = _of_suffix(_READERS, path)(path)
    flow = np.array(array, np.float32, order="C")
    known = known_vectors(flow) if valid is None else known_vectors(flow) & valid
    flow[:, ~known] = unknown
    tensor = torch.from_numpy(flow)
    return (tensor, torch.from_numpy(known)) if return_valid else tensor


def write_flow(path: PathLike, flow: torch.Tensor | np.ndarray, valid: torch.Tensor | np.ndarray | None = None) -> None:
    """Write a flow file in the format of the suffix; it appears whole or not at all.

    Vectors that are not finite, beyond 1e9 pixels, or where ``valid`` is False are written as unknown.

    Shapes: flow floating point [2, H, W]; valid bool [H, W].
    Units: pixels, channel 0 = x to the right, channel 1 = y down.
    Raises:
        ValueError: unknown suffix, another shape or dtype, a folder that does not exist, flow too long for the format.
    """
    path = pathlib.Path(path)
    writer = _of_suffix(_WRITERS, path)
    flow = _to_array(flow)
    if flow.dtype.kind != "f" or flow.ndim != 3 or flow.shape[0] != 2 or 0 in flow.shape:
        raise ValueError(f"cannot write {path}: flow must be floating point [2, H, W], got {flow.dtype} {flow.shape}")
    flow = flow.astype(np.float32)
    known = known_vectors(flow)
    if valid is not None:
        valid = _to_array(valid)
        if valid.shape != known.shape:
            raise ValueError(f"cannot write {path}: valid must be {known.shape}, got {valid.shape}")
        known &= valid.astype(bool)
    with atomic_path(path) as temporary:
        try:
            writer(temporary, flow, known)
        except ValueError as error:
            raise ValueError(f"cannot write {path}: {error}") from error


def _to_array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16
    return np.asarray(values)
