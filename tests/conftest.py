"""Fixtures and options shared by all tests."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # for `benchmarks`; last, so that an installed daflow_ext is the one tested


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config, items):
    skip_slow = pytest.mark.skip(reason="slow; run with --runslow")
    skip_gpu = pytest.mark.skip(reason="no NVIDIA GPU is visible")
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--runslow"):
            item.add_marker(skip_slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip_gpu)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Real frames, official weights and golden outputs, kept beside the repository."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"real data and goldens are not at {path}")
    return path


@pytest.fixture(scope="session")
def with_torchvision():
    """with_torchvision(code): what the code prints, in a process where torchvision can be imported."""
    if "TORCHVISION" not in os.environ and importlib.util.find_spec("torchvision") is None:
        pytest.skip("no torchvision; `make extras` has one, or pip install torchvision")

    def run(code: str) -> str:
        command = [sys.executable, str(ROOT / "tests/with_torchvision.py"), code]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.fixture(scope="session")
def make_pipeline():
    """make_pipeline(raft=None, vae=None, lift="all", **config of the flow network): an untrained toy of DA-Flow.

    Its flow depends on the transformer's features as much as on the encoders'; with ``raft`` it is that of RAFT.
    """
    pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")
    import diffusers

    from daflow_ext import DAFlow, DAFlowPipeline, Prompt
    from daflow_ext.features.dit4sr import DiT4SRTransformer2DModel
    from daflow_ext.features.pixel_unshuffle import PixelUnshuffleVAE

    heads = {"tap_layers": (0, 2), "token_channels": 32, "match_channels": 16, "context_channels": 8}
    heads |= {"head_channels": 16, "tap_channels": None, "scales": (1, 2)}

    def make(raft=None, vae=None, lift="all", **config) -> DAFlowPipeline:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vae = vae or PixelUnshuffleVAE()
            transformer = DiT4SRTransformer2DModel(
                sample_size=16,
                in_channels=vae.config.latent_channels,
                out_channels=vae.config.latent_channels,
                num_layers=3,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=12,
                caption_projection_dim=32,
                pooled_projection_dim=6,
                pos_embed_max_size=128,
                dual_attention_layers=(),
                lift=lift,
            )
            for name, parameter in transformer.named_parameters():
                if parameter.dim() > 1 and "to_k_control" not in name:
                    torch.nn.init.normal_(parameter, std=0.3 * parameter[0].numel() ** -0.5)
            if raft is not None:
                flow = DAFlow.from_raft(raft, **{**heads, **config})
            else:
                flow = DAFlow(small=True, **{**heads, **config})
                for head in flow.heads.children():
                    torch.nn.init.normal_(head.output.weight, std=10 * head.output.weight[0].numel() ** -0.5)
            prompt = Prompt.of(torch.randn(1, 12), torch.randn(6))
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        return DAFlowPipeline(vae.eval(), transformer.eval(), scheduler, prompt, flow.eval())

    return make


@pytest.fixture(scope="session")
def pipeline_folder(make_pipeline, tmp_path_factory) -> pathlib.Path:
    """The folder of such a pipeline."""
    folder = tmp_path_factory.mktemp("pipeline") / "toy"
    make_pipeline().save_pretrained(folder)
    return folder
