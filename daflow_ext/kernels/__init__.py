"""Device code as a package: ``daflow_ext.kernels.triton`` lives in the top-level folder ``kernels/triton``."""

import pathlib as _pathlib

# In a source tree (editable install) the folder is at the top; installed, setup.py has placed it inside the package.
_root = _pathlib.Path(__file__).resolve().parents[2]
if (_root / "CMakeLists.txt").is_file():
    __path__.append(str(_root / "kernels"))
