"""The opponents' adapters, played by our own stand-ins of their modules: layouts, offsets and scale are theirs."""

import sys
import types

import pytest
import torch

from benchmarks import corr_block, opponents
from benchmarks.plain import PlainCorrBlock
from daflow_ext import ops
from daflow_ext.correlation import shims
from daflow_ext.correlation.adapters import TorchvisionCorrBlock, spatial_correlation_sample

GRID, LEVELS, RADIUS = (16, 24), 2, 3


def _local_corr(im_a, im_b, warp, mode="nearest", normalized_coords=False):
    """fused-local-corr's function: warp [B, HW, N, 2] in pixels of im_b whose first pixel spans 0 to 1."""
    assert mode == "bilinear"
    assert not normalized_coords
    samples = ops.bilinear_sample(im_b.permute(0, 3, 1, 2), (warp - 0.5).permute(0, 3, 1, 2))  # [B, C, HW, N]
    return torch.einsum("bqc,bcqn->bqn", im_a, samples)


@pytest.fixture
def modules(monkeypatch):
    """Every opponent importable."""
    alt = types.ModuleType("alt_cuda_corr")
    alt.forward = shims._module("auto").forward
    stand_ins = {
        "torchvision": types.ModuleType("torchvision"),
        "torchvision.models": types.ModuleType("torchvision.models"),
        "torchvision.models.optical_flow": types.ModuleType("torchvision.models.optical_flow"),
        "torchvision.models.optical_flow.raft": types.SimpleNamespace(CorrBlock=TorchvisionCorrBlock),
        "alt_cuda_corr": alt,
        "local_corr": types.SimpleNamespace(local_corr=_local_corr),
        "spatial_correlation_sampler": types.SimpleNamespace(spatial_correlation_sample=spatial_correlation_sample),
    }
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("opponent", opponents.OPPONENTS, ids=lambda opponent: opponent.name)
def test_every_adapter_asks_the_question_we_answer(modules, opponent):
    fmap1, fmap2, coords = corr_block.inputs(GRID)
    coords, levels = coords[-1], LEVELS
    if not opponent.follows:
        y, x = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
        coords, levels = torch.stack([x, y])[None].float(), 1
    out = opponent.build(fmap1, fmap2, levels, RADIUS)(coords)
    torch.testing.assert_close(out, PlainCorrBlock(fmap1, fmap2, levels, RADIUS)(coords), rtol=0, atol=1e-4)


def test_opponents_say_why_they_cannot_run(monkeypatch):
    by_name = {opponent.name: opponent for opponent in opponents.OPPONENTS}
    assert by_name["alt_cuda_corr"].refusal("cpu") == "runs on cuda only"
    monkeypatch.setitem(sys.modules, "local_corr", None)  # an import of None fails
    assert "cannot import local_corr" in by_name["fused-local-corr"].refusal("cpu")
    monkeypatch.setitem(sys.modules, "alt_cuda_corr", shims._module("auto"))
    assert "stand-in" in by_name["alt_cuda_corr"].refusal("cuda")


def test_importable_opponents_are_measured(modules, monkeypatch):
    monkeypatch.setattr(corr_block, "CHANNELS", 32)
    monkeypatch.setattr(corr_block, "GOALS", {GRID: 3.0})
    cases = [record.case for record in corr_block.forward_records(GRID, "cpu", repeats=1)]
    assert {"torchvision", "fused-local-corr"} <= {case.split(", ")[2] for case in cases}
    (record,) = corr_block.unmoved_records(GRID, "cpu")
    assert record.unit == "x spatial-correlation-sampler"
    assert record.details["gflop"] == round(16 * 24 * 81 * 2 * 32 / 1e9, 4)
    assert record.value > 0


def test_torchvision_of_another_torch_build_is_imported(tmp_path, monkeypatch):
    """Its package refuses operators that do not exist, as PyTorch's registry does; it lies in a folder of its own."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch\n"
        "for name in ('nms', 'qnms'):\n"
        "    torch.library.register_fake(f'torchvision::{name}', lambda boxes: boxes)\n"
    )
    (package / "raft.py").write_text("CorrBlock = 'theirs'\n")
    monkeypatch.setenv("TORCHVISION", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(opponents, "_named", [])
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        assert opponents._load_torchvision("torchvision.raft").CorrBlock == "theirs"
    finally:
        for library in opponents._named:
            library._destroy()
        for name in ("torchvision.raft", "torchvision"):
            sys.modules.pop(name, None)
