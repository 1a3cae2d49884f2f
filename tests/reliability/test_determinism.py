"""Run twice, compared bit for bit: the ops, RAFT with its gradients, the pipeline; also in another process."""

import hashlib
import subprocess
import sys

import pytest
import torch

from daflow_ext import RAFT
from tests.reliability.test_concurrency import work


def digest(tensors) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def raft_once() -> list[torch.Tensor]:
    """Flow and the gradients of every parameter."""
    torch.manual_seed(0)
    model = RAFT(small=True)
    images = torch.rand(2, 1, 3, 48, 56) * 255
    flows = model(*images, iters=2)
    sum(flow.abs().mean() for flow in flows).backward()
    return [*flows, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("threads", [1, 2])
def test_raft_and_its_gradients(threads):
    """Another number of threads may change the last bits of torch's convolutions; the same number does not."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        first = raft_once()
        assert len(first) > 50
        assert digest(first) == digest(raft_once())
    finally:
        torch.set_num_threads(before)


def test_pipeline(make_pipeline):
    pipe = make_pipeline()
    clip = torch.randint(0, 256, (1, 4, 3, 48, 48), dtype=torch.uint8)

    def once():
        output = pipe(
            clip, num_inference_steps=2, feature_steps="all", iters=2, bidirectional=True,
            generator=torch.Generator().manual_seed(4),
        )  # fmt: skip
        return [output.flows, output.backward_flows, output.confidence, output.occlusion]

    assert digest(once()) == digest(once())


CODE = """
import sys, torch
torch.set_num_threads(1)
from tests.reliability import test_determinism, test_concurrency
print(test_determinism.digest([*test_determinism.raft_once(), *test_concurrency.work(3)]))
"""


@pytest.mark.slow
def test_two_processes_give_the_same_bits(request):
    results = {
        subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, cwd=request.config.rootpath
        ).stdout.strip()
        for _ in range(2)
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert results == {digest([*raft_once(), *work(3)])}
    finally:
        torch.set_num_threads(before)
