"""A repository that imports alt_cuda_corr runs unmodified on our kernels, forward and backward."""

import importlib.util
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from benchmarks.plain import PlainCorrBlock
from daflow_ext.correlation import shims


class RepositoryCorr(torch.autograd.Function):
    """How repositories wrap the extension: its forward and backward, nothing of autograd inside."""

    @staticmethod
    def forward(ctx, fmap1, fmap2, coords, radius):
        import alt_cuda_corr

        ctx.save_for_backward(fmap1, fmap2, coords)
        ctx.radius = radius
        (corr,) = alt_cuda_corr.forward(fmap1, fmap2, coords, radius)
        return corr

    @staticmethod
    def backward(ctx, grad):
        import alt_cuda_corr

        grads = alt_cuda_corr.backward(*ctx.saved_tensors, grad.contiguous(), ctx.radius)
        return *grads, None


class RepositoryAlternateCorrBlock:
    """Pyramid of fmap2, one call of the extension per level, divided by sqrt(C) at the end."""

    def __init__(self, fmap1, fmap2, num_levels=4, radius=4):
        self.fmap1, self.radius, self.pyramid = fmap1, radius, [fmap2]
        for _ in range(num_levels - 1):
            self.pyramid.append(F.avg_pool2d(self.pyramid[-1], 2))

    def __call__(self, coords):
        batch, _, height, width = coords.shape
        centres = coords.permute(0, 2, 3, 1)
        fmap1 = self.fmap1.permute(0, 2, 3, 1).contiguous()
        out = []
        for level, fmap2 in enumerate(self.pyramid):
            centre = (centres / 2**level).reshape(batch, 1, height, width, 2).contiguous()
            corr = RepositoryCorr.apply(fmap1, fmap2.permute(0, 2, 3, 1).contiguous(), centre, self.radius)
            out.append(corr.squeeze(1))
        return torch.stack(out, 1).reshape(batch, -1, height, width) / self.fmap1.shape[1] ** 0.5


@pytest.fixture
def installed(backend):
    yield shims.install_alt_cuda_corr(backend=backend)
    shims.uninstall_alt_cuda_corr()
    assert "alt_cuda_corr" not in sys.modules


def test_an_unmodified_repository_runs_and_trains(installed, device):
    fmap1, fmap2 = torch.randn(2, 2, 20, 17, 22, device=device)
    coords = torch.randint(-6, 28, (2, 2, 17, 22), device=device) + 0.1 + 0.8 * torch.rand(2, 2, 17, 22, device=device)
    upstream = torch.randn(2, 3 * 81, 17, 22, device=device)

    def run(block, dtype):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (fmap1, fmap2, coords)]
        out = block(*leaves[:2], 3, 4)(leaves[2])
        return [out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]

    ours, plain = run(RepositoryAlternateCorrBlock, torch.float32), run(PlainCorrBlock, torch.float64)
    for tensor, truth in zip(ours, plain, strict=True):
        torch.testing.assert_close(tensor.double(), truth.double(), atol=3e-5 * truth.abs().max().item(), rtol=0)


def test_several_centres_per_pixel(installed, device):
    fmap1, fmap2 = torch.randn(2, 1, 6, 7, 8, device=device)
    coords = 6 * torch.rand(1, 5, 6, 7, 2, device=device)
    (corr,) = installed.forward(fmap1, fmap2, coords, 0)
    assert corr.shape == (1, 5, 1, 6, 7)
    for centre in range(5):
        (single,) = installed.forward(fmap1, fmap2, coords[:, centre : centre + 1], 0)
        torch.testing.assert_close(corr[:, centre], single[:, 0])


def test_wrong_ranks_are_named(installed):
    fmap = torch.zeros(1, 8, 9, 16)
    with pytest.raises(ValueError, match=r"alt_cuda_corr: .*got \[1, 8, 9, 16\], \[1, 8, 9, 16\] and \[1, 8, 9, 2\]"):
        installed.forward(fmap, fmap, torch.zeros(1, 8, 9, 2), 3)


def test_a_real_extension_is_not_shadowed():
    real = types.ModuleType("alt_cuda_corr")
    real.forward = real.backward = lambda *args: None
    sys.modules["alt_cuda_corr"] = real
    try:
        with pytest.raises(RuntimeError, match="already imported"):
            shims.install_alt_cuda_corr()
        assert sys.modules["alt_cuda_corr"] is real
        ours = shims.install_alt_cuda_corr(force=True)
        assert sys.modules["alt_cuda_corr"] is ours
        shims.install_alt_cuda_corr()  # again: still over the same original
        shims.uninstall_alt_cuda_corr()
        assert sys.modules["alt_cuda_corr"] is real
        shims.uninstall_alt_cuda_corr()
        assert sys.modules["alt_cuda_corr"] is real
    finally:
        del sys.modules["alt_cuda_corr"]


def test_a_folder_of_uncompiled_sources_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "alt_cuda_corr").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("alt_cuda_corr")  # an empty namespace package
    try:
        module = shims.install_alt_cuda_corr()
        assert importlib.import_module("alt_cuda_corr") is module
        assert importlib.util.find_spec("alt_cuda_corr") is not None
    finally:
        shims.uninstall_alt_cuda_corr()
        sys.modules.pop("alt_cuda_corr", None)
