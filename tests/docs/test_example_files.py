"""The files of docs/examples run, and do what they say; their figures are compared, not only printed."""

import importlib.util
import math
import pathlib
import sys

import pytest
import torch

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "docs/examples"


def _example(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch, tmp_path):
    """The stand-ins for other repositories disappear again, and files are written elsewhere."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("raft", "corr", "ptlflow"):
            del sys.modules[name]


def test_every_example_has_a_test_and_a_place_on_the_page():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert names <= tests
    page = (EXAMPLES / "index.md").read_text()
    assert all(f'\n--8<-- "docs/examples/{name}.py"\n' in page for name in names)  # a formatter once broke the mark


def test_raft_repository(capsys):
    example = _example("raft_repository")
    assert example.main([]) < 1e-3
    said = capsys.readouterr().out
    assert "flow up to 0.00 px" not in said  # two zero flows would be equal too
    import daflow_ext

    assert example.load_repository(example.STAND_IN, ours=True).CorrBlock is daflow_ext.CorrBlock
    assert example.load_repository(example.STAND_IN, ours=False).CorrBlock is not daflow_ext.CorrBlock


def test_ptlflow_model(capsys):
    assert _example("ptlflow_model").main([]) < 1e-3
    assert "get_corr_block" in capsys.readouterr().out or importlib.util.find_spec("ptlflow") is not None


@pytest.mark.slow
def test_torchvision_raft(with_torchvision):
    said = with_torchvision(
        "import runpy; example = runpy.run_path('docs/examples/torchvision_raft.py'); print(example['main']([]))"
    )
    assert float(said.splitlines()[-1]) < 1e-3


def test_diffusers_pipeline():
    pytest.importorskip("diffusers")
    flows = _example("diffusers_pipeline").main([])
    assert flows.shape == (1, 2, 2, 64, 96)
    assert flows.isfinite().all()


def test_accelerate_training():
    pytest.importorskip("accelerate")
    threads = torch.get_num_threads()
    losses = _example("accelerate_training").main(["--steps", "6", "--size", "64", "96", "--iters", "2"])
    torch.set_num_threads(threads)
    assert len(losses) == 6
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert min(losses[3:]) < max(losses[:3])


@pytest.mark.slow
def test_export_onnx(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    assert _example("export_onnx").main(["--size", "128x160", "--iters", "2", "-o", str(tmp_path / "raft.onnx")]) < 1e-2
