"""Small weights and frames for the command line."""

import pytest
import torch

from daflow_ext.cli import main
from daflow_ext.flow import write_flow
from daflow_ext.frames import write_image
from daflow_ext.models import RAFT


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """RAFT-small with random weights: enough to run, not to be right."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(RAFT(small=True).state_dict(), path)
    return path


@pytest.fixture
def clip(tmp_path):
    """A folder of four frames of 60 x 70 pixels; returns the function that writes frame files into it."""
    folder = tmp_path / "clip"
    folder.mkdir()
    scene = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 30) * 255, scale_factor=4, mode="bicubic")[0]
    scene = scene.clamp(0, 255).byte()
    for index in range(4):
        write_image(folder / f"frame{index + 8}.png", scene[:, 5:65, 5 + 2 * index : 75 + 2 * index])
    return folder


@pytest.fixture
def true_flow(clip, tmp_path):
    """The flow files of ``clip``, whose content moves two pixels to the left from frame to frame."""
    root = tmp_path / "truth"
    for kind, x in (("flow", -2.0), ("flow_backward", 2.0)):
        (root / kind).mkdir(parents=True)
        for index in range(8, 11):
            write_flow(root / kind / f"frame{index}.flo", torch.tensor([x, 0.0])[:, None, None].expand(2, 60, 70))
    return root


@pytest.fixture
def daflow(capsys):
    """Runs the command in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(daflow):
    """Runs a command that must fail with one sentence; returns it."""

    def run(*arguments):
        code, out, err = daflow(*arguments)
        assert code not in (0, None)
        assert out == ""
        assert err.startswith("daflow")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        return err

    return run
