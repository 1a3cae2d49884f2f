"""Finds the torch that the extension will run with, without importing it.

pip's isolated build hides site-packages from sys.path but keeps sys.prefix, so the user's torch is still there to be
found; asking pip for a torch of its own would download gigabytes and build against the wrong one.
"""

import dataclasses
import importlib.util
import os
import pathlib
import re
import site
import sysconfig


@dataclasses.dataclass(frozen=True)
class Torch:
    root: pathlib.Path
    version: str
    cuda: str | None  # e.g. "13.0"; None for a CPU build


def find_torch() -> Torch | None:
    """The first torch with stable-ABI headers: $DAFLOW_TORCH_DIR, importable, target environment, user site."""
    if named := os.environ.get("DAFLOW_TORCH_DIR"):
        torch = _read(pathlib.Path(named))
        if torch is None:
            raise SystemExit(f"DAFLOW_TORCH_DIR={named} is not a torch >= 2.10 package folder (no stable-ABI headers)")
        return torch
    candidates = []
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        candidates.append(pathlib.Path(spec.origin).parent)
    folders = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), site.getusersitepackages()]
    candidates += [pathlib.Path(folder) / "torch" for folder in folders]
    return next(filter(None, map(_read, candidates)), None)


def _read(root: pathlib.Path) -> Torch | None:
    version_file = root / "version.py"
    if not (version_file.is_file() and (root / "include/torch/csrc/stable/library.h").is_file()):
        return None
    text = version_file.read_text()
    version = re.search(r"__version__ = '([^']+)'", text)
    cuda = re.search(r"^cuda(?:: [^=]+)? = '([^']+)'", text, re.MULTILINE)
    return Torch(root, version[1] if version else "unknown", cuda[1] if cuda else None)
