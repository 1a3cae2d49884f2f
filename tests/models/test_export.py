"""The flow networks as whole programs: torch.export and torch.compile give the flow of the plain call."""

import pytest
import torch

from daflow_ext import RAFT

IMAGES = (torch.rand(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255).unbind(0)


class FlowOfPair(torch.nn.Module):
    """Tensors in, flow out: options become constants of the program."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *tensors):
        return self.model(*tensors, iters=1, test_mode=True)[1]


def _program(name: str) -> tuple[FlowOfPair, tuple]:
    torch.manual_seed(0)
    raft = RAFT(small=True, memory="on_the_fly").eval()
    if name == "raft":
        return FlowOfPair(raft), IMAGES
    pytest.importorskip("diffusers")
    from daflow_ext import DAFlow

    config = {"tap_layers": (1, 4), "token_channels": 32, "head_channels": 16, "tap_channels": None, "scales": (1, 2)}
    model = DAFlow.from_raft(raft, match_channels=32, context_channels=16, **config).eval()
    model.memory = "on_the_fly"
    with torch.no_grad():  # its heads start without effect
        for parameter in model.heads.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    queries, keys = ([torch.randn(1, 4 * 6, 32) for _ in range(2)] for _ in range(2))
    return FlowOfPair(model), (*IMAGES, queries, keys)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["raft", "daflow"])
def test_export(name, backend):
    from daflow_ext import backends

    if not backends.can_run("corr_lookup", backend)[0]:
        pytest.skip(backends.can_run("corr_lookup", backend)[1])
    program, inputs = _program(name)
    program.model.backend = backend
    with torch.no_grad():
        expected = program(*inputs)
        exported = torch.export.export(program, inputs, strict=False)
        assert (exported.module()(*inputs) - expected).abs().max() < 1e-3
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    ours = {target for target in targets if target.startswith("daflow_ext.")}
    assert bool(ours) == (backend == "cpu")  # the reference is plain operators, for ONNX and others


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raft", "daflow"])
def test_compile(name):
    program, inputs = _program(name)
    with torch.no_grad():
        compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
        assert (compiled(*inputs) - program(*inputs)).abs().max() < 1e-3
