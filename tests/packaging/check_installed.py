"""Whether an installed package works, its compiled parts included: ``python tests/packaging/check_installed.py``.

cibuildwheel runs it on every wheel (``daflow info`` alone reports a library that does not load, and is content).
"""

import torch

import daflow_ext
import daflow_ext.kernels.triton
from daflow_ext import _host, backends
from daflow_ext.datasets.scenes import Scenes


def main() -> None:
    """Raises AssertionError where something is missing or wrong; prints the place of the package."""
    for op, known in backends.OPS.items():
        if "cpu" in known:
            assert backends.can_run(op, "cpu") == (True, ""), backends.describe()
    torch.manual_seed(0)
    coords = torch.rand(1, 2, 6, 7) * 6
    fmaps = torch.randn(2, 1, 8, 6, 7)
    ours = daflow_ext.CorrBlock(fmaps[0], fmaps[1], 2, 3, backend="cpu")(coords)
    truth = daflow_ext.CorrBlock(fmaps[0], fmaps[1], 2, 3, backend="reference")(coords)
    assert (ours - truth).abs().max() < 1e-5
    assert _host.build_info()
    clip = Scenes(length=1, size=(32, 48), frames=2, textures="procedural")[0]
    assert clip.frames.shape == (2, 32, 48, 3)
    assert clip.frames.std() > 1
    print(daflow_ext.__file__)


if __name__ == "__main__":
    main()
