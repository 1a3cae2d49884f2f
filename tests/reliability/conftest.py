"""Weights for the commands under test."""

import pytest
import torch

from daflow_ext.models import RAFT


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """RAFT-small with random weights: enough to run, not to be right."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(RAFT(small=True).state_dict(), path)
    return path
