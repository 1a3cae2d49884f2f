"""Files that are either whole or absent."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary name in the folder of ``path``, renamed to ``path`` when the block ends and removed when it fails.

    A reader therefore sees the old file or the complete new one, never a part.

    Raises:
        ValueError: the folder of ``path`` does not exist.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist")
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


def existing_file(path: str | os.PathLike) -> pathlib.Path:
    """``path`` as a Path, or FileNotFoundError / ValueError in one sentence when there is no such file."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a file was expected")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return path
