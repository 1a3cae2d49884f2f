"""One reader and one writer per flow file format; :mod:`.formats` chooses among them.

Readers return flow as [2, H, W] and a valid map [H, W] or None; writers get float32 [2, H, W] and bool [H, W]. A reader
compares the size that a header claims with the bytes that are there before it makes an array of that size.
"""

import math
import pathlib
import re
import struct

import cv2
import numpy as np

from ..frames.io import DEFLATE_RATIO, decode_image
from ._arrays import check_size, npy_array, npz_arrays

Arrays = tuple[np.ndarray, np.ndarray | None]

FLO_MAGIC = b"PIEH"  # the float 202021.25, little endian
FLO_UNKNOWN = 1e10
KITTI_RANGE = (-512.0, 511.984375)  # (v - 32768) / 64 for 16-bit v


def _check_layout(path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype.kind != "f" or len(shape) != 3 or 2 not in (shape[0], shape[2]) or 0 in shape:
        raise ValueError(
            f"{path} holds {dtype} {tuple(shape)}; a flow is floating point, (2, H, W) or (H, W, 2), not empty"
        )


def _channels_first(path: pathlib.Path, array: np.ndarray, prefer_first: bool) -> np.ndarray:
    """[2, H, W] from either layout; where both fit, the one this format is written in."""
    shape = array.shape
    _check_layout(path, array.dtype, shape)
    if shape[0] == 2 and (prefer_first or shape[2] != 2):
        return array
    return array.transpose(2, 0, 1)


def read_flo(path: pathlib.Path) -> Arrays:
    with path.open("rb") as file:
        header = file.read(12)
    if len(header) < 12 or header[:4] != FLO_MAGIC:
        raise ValueError(f"{path} is no .flo file: it begins with {header[:4]!r} instead of {FLO_MAGIC!r}")
    width, height = struct.unpack("<ii", header[4:])
    if width < 1 or height < 1:
        raise ValueError(f"{path} has an impossible size in its header: {width}x{height}")
    check_size(path, f"{width}x{height}", 12 + 8 * width * height, path.stat().st_size)
    values = np.fromfile(path, "<f4", offset=12).reshape(height, width, 2)
    return values.transpose(2, 0, 1), None


def write_flo(path: pathlib.Path, flow: np.ndarray, valid: np.ndarray) -> None:
    values = np.where(valid, flow, FLO_UNKNOWN).transpose(1, 2, 0)
    with path.open("wb") as file:
        file.write(FLO_MAGIC + struct.pack("<ii", flow.shape[2], flow.shape[1]))
        file.write(np.ascontiguousarray(values, "<f4").data)


def read_png16(path: pathlib.Path) -> Arrays:
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(b"\x89PNG") or header[12:16] != b"IHDR":
        raise ValueError(f"{path} is no PNG file")
    depth, kind = header[24:26]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 0)
    if depth != 16 or channels != 3:
        raise ValueError(
            f"{path} is no KITTI flow: it has {channels} channel(s) of {depth} bits, 3 of 16 bits were expected"
        )
    image = decode_image(path, cv2.IMREAD_UNCHANGED)
    flow = (image[:, :, 2:0:-1].transpose(2, 0, 1).astype(np.float32) - 32768) / 64
    return flow, image[:, :, 0] != 0


def write_png16(path: pathlib.Path, flow: np.ndarray, valid: np.ndarray) -> None:
    low, high = KITTI_RANGE
    known = flow[:, valid]
    if known.size and (known.min() < low or known.max() > high):
        raise ValueError(
            f"flow from {known.min():.1f} to {known.max():.1f} pixels does not fit a KITTI PNG, which holds "
            f"{low:g} to {high:.2f}; write flo, npy, npz, flo5 or pfm instead"
        )
    coded = np.where(valid, np.rint(flow * 64) + 32768, 0).astype(np.uint16)
    image = np.stack([valid.astype(np.uint16), coded[1], coded[0]], axis=-1)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def read_npy(path: pathlib.Path) -> Arrays:
    return _channels_first(path, npy_array(path), prefer_first=True), None


def write_npy(path: pathlib.Path, flow: np.ndarray, valid: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, np.where(valid, flow, np.float32(np.nan)))


def read_npz(path: pathlib.Path) -> Arrays:
    arrays, names = npz_arrays(path, ("flow", "valid"))
    if "flow" not in arrays:
        raise ValueError(f"{path} has no array 'flow', it has {', '.join(names) or 'nothing'}")
    flow = _channels_first(path, arrays["flow"], prefer_first=True)
    valid = arrays.get("valid")
    if valid is not None and valid.shape != flow.shape[1:]:
        raise ValueError(f"{path}: 'valid' has shape {valid.shape}, 'flow' needs {flow.shape[1:]}")
    return flow, None if valid is None else valid.astype(bool)


def write_npz(path: pathlib.Path, flow: np.ndarray, valid: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, flow=np.where(valid, flow, np.float32(np.nan)), valid=valid)


def read_flo5(path: pathlib.Path) -> Arrays:
    import h5py  # imported where used, it costs a fifth of a second

    try:
        with h5py.File(path, "r") as file:
            link = file.get("flow", getlink=True)  # first, because get() would follow it into another file
            if link is not None and not isinstance(link, h5py.HardLink):
                raise ValueError(f"{path}: 'flow' is a link; a data set was expected")
            if not isinstance(file.get("flow"), h5py.Dataset) or file["flow"].shape is None:
                raise ValueError(f"{path} has no data set 'flow', it has {', '.join(map(str, file)) or 'nothing'}")
            data = file["flow"]
            _check_layout(path, data.dtype, data.shape)
            if data.external or data.is_virtual:
                raise ValueError(f"{path}: the data of 'flow' lie in another file")
            stored = min(data.id.get_storage_size(), path.stat().st_size)
            claimed = max(data.nbytes, math.prod(data.chunks or ()) * data.dtype.itemsize)
            if claimed > DEFLATE_RATIO * stored:
                raise ValueError(f"{path}: 'flow' claims {claimed} bytes {data.shape}, only {stored} are stored")
            array = data[()]
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} is no whole HDF5 file: {error}") from error
    return _channels_first(path, array, prefer_first=False), None


def write_flo5(path: pathlib.Path, flow: np.ndarray, valid: np.ndarray) -> None:
    import h5py

    values = np.where(valid, flow, np.float32(np.nan)).transpose(1, 2, 0)
    with h5py.File(path, "w") as file:
        file.create_dataset("flow", data=np.ascontiguousarray(values), compression="gzip", compression_opts=5)


def read_pfm(path: pathlib.Path) -> Arrays:
    with path.open("rb") as file:
        start = file.read(128)
    match = re.match(rb"(PF|Pf)\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\r?\n", start)
    if match is None:
        raise ValueError(f"{path} is no PFM file: it begins with {start[:16]!r}")
    kind, width, height, scale = match[1], int(match[2]), int(match[3]), float(match[4])
    if kind == b"Pf":
        raise ValueError(f"{path} is no flow: it has 1 channel (Pf); 3 channels (PF: x, y, unused) were expected")
    if width < 1 or height < 1:
        raise ValueError(f"{path} has an impossible size in its header: {width}x{height}")
    check_size(path, f"{width}x{height}", match.end() + 12 * width * height, path.stat().st_size)
    values = np.fromfile(path, "<f4" if scale < 0 else ">f4", offset=match.end()).reshape(height, width, 3)
    return values[::-1, :, :2].transpose(2, 0, 1), None


def write_pfm(path: pathlib.Path, flow: np.ndarray, valid: np.ndarray) -> None:
    values = np.zeros((*valid.shape, 3), "<f4")
    values[:, :, :2] = np.where(valid, flow, np.nan).transpose(1, 2, 0)
    with path.open("wb") as file:
        file.write(f"PF\n{valid.shape[1]} {valid.shape[0]}\n-1.0\n".encode())
        file.write(np.ascontiguousarray(values[::-1]).data)
