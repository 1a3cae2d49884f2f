"""Files that are either whole or absent."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import socket
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary name in the folder of ``path``, renamed to ``path`` when the block ends and removed when it fails.

    A reader therefore sees the old file or the complete new one, never a part. A link stays, its target is replaced.

    Raises:
        ValueError: the folder of ``path`` does not exist, or ``path`` is a folder, pipe or device.
    """
    path = pathlib.Path(os.path.realpath(path) if os.path.islink(path) else path)
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it exists and is no file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """An empty folder beside ``path``, renamed to ``path`` when the block ends and removed when it fails.

    Raises:
        ValueError: ``path`` exists, other than as an empty folder, or the folder around it does not.
    """
    path = pathlib.Path(path)
    if not path.absolute().parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"cannot write {path}: it exists; give a new folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_claims: set[socket.socket] = set()


@contextlib.contextmanager
def sole_writer(path: str | os.PathLike) -> Iterator[None]:
    """While the block runs, no other process of this machine gets into its own for the same ``path`` (Linux).

    Nothing is written for it, ``path`` need not exist, and the end of the process, however it comes, ends the claim.

    Raises:
        ValueError: another process is in.
    """
    if sys.platform != "linux":
        yield
        return
    name = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            claim.bind(f"\0daflow_ext {name}")  # an address of Linux's that is no file
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ValueError(
                f"another process is writing to {path}; wait for its end, or name another place"
            ) from error
        _claims.add(claim)
        try:
            yield
        finally:
            _claims.discard(claim)


def _leave_claims() -> None:
    """A loader's worker may outlive its parent for seconds."""
    for claim in _claims:
        claim.close()


os.register_at_fork(after_in_child=_leave_claims)


def existing_file(path: str | os.PathLike) -> pathlib.Path:
    """``path`` as a Path, or FileNotFoundError / ValueError in one sentence when there is no such file."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a file was expected")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def json_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ValueError: it holds something else; names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object but {type(found).__name__}")
    return found
