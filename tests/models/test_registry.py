"""Models by name: the stated numbers are those of the real modules."""

import pathlib
import subprocess
import sys

import pytest
import torch
from torch import nn

import daflow_ext
from daflow_ext import RAFT, get_model, list_models
from daflow_ext.models import weights

PACKAGE = pathlib.Path(daflow_ext.__file__).parent
NAMES = ["raft-large", "raft-small", "raft-tiny-lq", "daflow", "daflow-tiny"]


def test_names():
    assert [model.name for model in list_models()] == NAMES
    for model in list_models():
        assert model.shipped == (PACKAGE / "weights" / model.name).is_dir()


@pytest.mark.parametrize("name", NAMES)
def test_stated_parameters_are_those_of_the_modules(name):
    (stated,) = (model.parameters for model in list_models() if model.name == name)
    if name.startswith("raft-"):
        parts = {"raft": get_model(name, pretrained=False)}
    else:
        pytest.importorskip("diffusers")
        from daflow_ext.models.config import build_parts

        with torch.device("meta"):  # the full size has 2.8 billion
            parts = build_parts(name)
    modules = [part for part in parts.values() if isinstance(part, nn.Module)]
    assert sum(p.numel() for module in modules for p in module.parameters()) == stated


def test_the_tiny_pipeline_fits_16_megabytes_in_half_precision():
    """Everything a folder would hold: parameters and buffers."""
    pytest.importorskip("diffusers")
    from daflow_ext.models.config import build_parts

    parts = build_parts("daflow-tiny", torch_dtype=torch.float16)
    modules = [part for part in parts.values() if isinstance(part, nn.Module)]
    assert len(modules) == 4
    assert sum(2 * t.numel() for module in modules for t in module.state_dict().values()) <= 16e6
    assert parts["transformer"].dtype == torch.float16
    assert parts["flow"].dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_the_papers_configuration():
    pytest.importorskip("diffusers")
    from daflow_ext.models.config import build_parts

    with torch.device("meta"):
        parts = build_parts("daflow", correlation="sum")
    flow, transformer = parts["flow"].config, parts["transformer"].config
    assert tuple(flow.tap_layers) == (3, 13, 16, 17)
    assert (flow.match_channels, flow.context_channels, flow.small) == (256, 128, False)
    assert tuple(flow.scales) == (1, 1, 2, 2)
    assert (transformer.num_layers, transformer.num_attention_heads * transformer.attention_head_dim) == (24, 1536)
    assert flow.correlation == "sum"


def test_random_models_and_files(tmp_path):
    model = get_model("raft-small", pretrained=False, memory="on_the_fly")
    assert isinstance(model, RAFT)
    assert not model.training
    weights.write(model.state_dict(), model.config, tmp_path / "w.safetensors")
    again = get_model(tmp_path / "w.safetensors", backend="reference")
    assert again.backend == "reference"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not get_model("raft-large", pretrained=False).small


def test_a_pipeline_by_name_and_from_its_folder(tmp_path):
    pytest.importorskip("diffusers")
    pipe = get_model("daflow-tiny", pretrained=False, correlation="sum")
    assert isinstance(pipe, daflow_ext.DAFlowPipeline)
    assert pipe.flow.config.correlation == "sum"
    pipe.save_pretrained(tmp_path)
    again = get_model(tmp_path)
    assert torch.equal(again.flow.heads.key.output.weight, pipe.flow.heads.key.output.weight)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"'raft' is neither a model \(raft-large, .*\) nor a weights file"):
        get_model("raft")
    with pytest.raises(ValueError, match=r"pretrained=False is for named models"):
        get_model(tmp_path, pretrained=False)
    for model in list_models():
        if not model.shipped:
            with pytest.raises(FileNotFoundError, match=rf"no weights of {model.name} come with.*pretrained=False"):
                get_model(model.name)


def test_without_diffusers_the_rest_works():
    """In a process where diffusers cannot be found."""
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "diffusers" else find(name, *a)
sys.modules["diffusers"] = None
import daflow_ext
from daflow_ext import *
assert len(daflow_ext.list_models()) == 5
daflow_ext.get_model("raft-small", pretrained=False)
for ask in (lambda: daflow_ext.DAFlow, lambda: daflow_ext.get_model("daflow-tiny", pretrained=False)):
    try:
        ask()
    except ImportError as error:
        assert 'needs diffusers; install it with pip install "daflow_ext[restoration]"' in str(error), error
    else:
        raise AssertionError("no error")
try:
    daflow_ext.DaFlow
except AttributeError:
    print("fine")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "fine\n", result.stderr


def test_optional_names_are_shown():
    assert {"DAFlow", "DAFlowPipeline", "Prompt"} <= set(dir(daflow_ext))
    pytest.importorskip("diffusers")
    from daflow_ext import DAFlow, DiT4SRTransformer2DModel, PixelUnshuffleVAE, Prompt

    assert DAFlow.__module__ == "daflow_ext.models.daflow"
    assert {c.__name__ for c in (DiT4SRTransformer2DModel, PixelUnshuffleVAE, Prompt)} <= set(dir(daflow_ext))
