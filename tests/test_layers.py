"""The house keeps its shape: imports go one way, and one op has one name everywhere."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "daflow_ext"

# Data flows in this order; a package imports only from those before it, plus the foundation.
ORDER = ["frames", "features", "correlation", "update", "flow", "models", "datasets", "evaluate", "train", "cli"]
FOUNDATION = {"_extras", "_load", "backends", "ops", "reference"}
COMPILED_OPS = ["bilinear_sample", "corr_lookup", "corr_pyramid", "volume_lookup"]  # C++ and CUDA
TRITON_OPS = ["qk_norm", "softargmax_flow", "st_attention"]
OPS = sorted(COMPILED_OPS + TRITON_OPS)


def _imports(path: pathlib.Path) -> set[str]:
    """First component, below daflow_ext, of everything the file imports from the package (also inside functions)."""
    package = ("daflow_ext", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            names = [(*base, alias.name) for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "daflow_ext" and len(name) > 1}
    return found


def _files(folder: str) -> list[pathlib.Path]:
    return sorted((PACKAGE / folder).rglob("*.py"))


@pytest.mark.parametrize("layer", ORDER)
def test_imports_follow_the_data(layer):
    allowed = FOUNDATION | set(ORDER[: ORDER.index(layer) + 1]) | {"__version__"}
    if layer in ("datasets", "cli"):
        allowed.add("_host")
    files = _files(layer)
    assert files, f"daflow_ext/{layer} has no files"
    for path in files:
        assert _imports(path) <= allowed, f"{path.relative_to(ROOT)} imports {_imports(path) - allowed}"


def test_reference_imports_torch_only():
    for path in _files("reference"):
        assert _imports(path) <= {"reference"}, path
        roots = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots.add(node.module.split(".")[0])
        assert roots <= {"torch", "collections", "math"}, f"{path} imports {roots}"


def test_ops_import_only_the_foundation():
    for path in _files("ops"):
        assert _imports(path) <= FOUNDATION | {"kernels"}, path


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_one_name_in_every_room(op):
    rooms = {"daflow_ext/ops": ".py", "daflow_ext/reference": ".py", "docs/ops": ".md"}
    if op in COMPILED_OPS:
        rooms |= {"csrc/cpu": ".cpp", "csrc/cuda": ".cpp", "kernels/cuda": ".cu"}
        assert re.search(rf'm\.def\(\s*"{op}\(', (ROOT / "csrc/library.cpp").read_text())
    else:
        rooms |= {"kernels/triton": ".py"}
    for folder, suffix in rooms.items():
        assert (ROOT / folder / f"{op}{suffix}").is_file(), f"{folder}/{op}{suffix} is missing"
    assert (ROOT / "tests/ops" / f"test_{op}.py").is_file()


def test_backends_lists_every_public_op():
    from daflow_ext import backends, ops, reference

    assert sorted(backends.OPS) == OPS == sorted(name for name in ops.__all__ if name.islower())
    assert set(OPS) <= set(reference.__all__)


def test_op_and_reference_have_the_same_arguments():
    import inspect

    from daflow_ext import ops, reference

    for op in OPS:
        public = dict(inspect.signature(getattr(ops, op)).parameters)
        assert public.pop("backend").default == "auto"
        truth = inspect.signature(getattr(reference, op)).parameters
        assert list(public) == list(truth), op
        assert {name: p.default for name, p in public.items()} == {name: p.default for name, p in truth.items()}, op


def test_no_file_has_outgrown_its_name():
    tracked = [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.*"), *(ROOT / "kernels").rglob("*.*")]
    long = {str(path.relative_to(ROOT)): n for path in tracked if (n := len(path.read_bytes().splitlines())) > 450}
    assert not long, long
