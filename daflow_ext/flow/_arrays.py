"""NumPy's files, read with no more memory than their size allows."""

import io
import math
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

from ..frames.io import DEFLATE_RATIO

LONGEST_HEADER = 10_000  # of a NumPy array; NumPy reads no longer ones either, but first asks for the memory


def check_size(path: pathlib.Path, what: str, expected: int, actual: int) -> None:
    """Raise ValueError unless the file has the bytes that its header asks for."""
    if actual != expected:
        word = "truncated" if actual < expected else "too long"
        raise ValueError(f"{path} is {word}: its header says {what}, {expected} bytes, but it has {actual} bytes")


def npy_array(path: pathlib.Path) -> np.ndarray:
    """The array of numbers in an .npy file.

    Raises:
        ValueError: truncated, damaged, or no array of numbers; names the file.
    """
    with path.open("rb") as stream:
        return _array(path, stream, path.stat().st_size)


def npz_arrays(path: pathlib.Path, wanted: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the ``wanted`` arrays that an .npz file has, and the names of all.

    Raises:
        ValueError: as :func:`npy_array`; or stored in a way that NumPy does not write.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays: dict[str, np.ndarray] = {}
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name == info.filename or name not in wanted:
                    continue
                if name in arrays:
                    raise zipfile.BadZipFile(f"it holds {name!r} twice")
                # NumPy writes no other kinds, and zipfile unpacks those without a limit
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise zipfile.BadZipFile(f"{name!r} is neither stored nor deflated")
                if info.file_size > DEFLATE_RATIO * min(info.compress_size, path.stat().st_size):
                    raise ValueError(f"{path} is damaged: {info.filename} claims {info.file_size} bytes")
                with archive.open(info) as stream:
                    arrays[name] = _array(path, stream, info.file_size)
            return arrays, archive.namelist()
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is no whole .npz file: {error}") from error


def _array(path: pathlib.Path, stream: Any, size: int) -> np.ndarray:
    """One array in NumPy's own format from a stream of ``size`` bytes."""
    start = stream.read(8)
    length = stream.read(2 if start[6:7] == b"\x01" else 4)
    header = io.BytesIO(start + length + stream.read(min(int.from_bytes(length, "little"), LONGEST_HEADER)))
    try:
        version = np.lib.format.read_magic(header)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(header)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:  # NumPy's
        raise ValueError(f"{path} holds no NumPy array: {error}") from error
    if dtype.hasobject:
        raise ValueError(f"{path} holds Python objects; an array of numbers was expected")
    if dtype.kind not in "biuf" or min(shape, default=0) < 0:
        raise ValueError(f"{path} holds {dtype} {shape}; an array of numbers was expected")
    check_size(path, f"{dtype} {shape}", stream.tell() + math.prod(shape) * dtype.itemsize, size)
    return np.frombuffer(stream.read(), dtype).reshape(shape, order="F" if fortran else "C")
