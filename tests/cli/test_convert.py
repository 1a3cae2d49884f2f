"""`daflow convert --raft --dit4sr`: a pipeline folder from weights of its parts; and `daflow list`."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from daflow_ext import RAFT, list_models

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")

from daflow_ext import DAFlowPipeline, PixelUnshuffleVAE
from daflow_ext.models.config import build_parts


@pytest.fixture(scope="session")
def restoration(tmp_path_factory):
    """A folder with transformer/, vae/, scheduler/ and prompt/ of the tiny configuration."""
    folder = tmp_path_factory.mktemp("dit4sr")
    torch.manual_seed(0)
    for name, part in build_parts("daflow-tiny").items():
        if name != "flow":
            part.save_pretrained(folder / name)
    return folder


def test_start_a_pipeline(daflow, restoration, tiny_weights, tmp_path):
    """The folder loads strictly, holds the given parts, and its flow network gives RAFT's flow."""
    out = tmp_path / "start"
    code, text, err = daflow(
        "convert", "--raft", tiny_weights, "--dit4sr", restoration, "--flow", "daflow-tiny", "-o", out
    )
    assert (code, err) == (0, "")
    assert f"{out}: DA-Flow on RAFT-small and layers 1, 4, 5, 6, concat correlation" in text
    assert [path.name for path in tmp_path.iterdir()] == ["start"]
    pipe = DAFlowPipeline.from_pretrained(out)
    for name in ("transformer", "prompt"):
        (file,) = (restoration / name).glob("*.safetensors")
        given, kept = load_file(file), getattr(pipe, name).state_dict()
        assert all(torch.equal(tensor, kept[key]) for key, tensor in given.items())
    raft = RAFT.from_pretrained(tiny_weights)
    pair = [(torch.rand(1, 3, 64, 80) * 255).byte() for _ in range(2)]
    features = [torch.randn(1, 20, 128) for _ in range(4)]
    with torch.no_grad():
        flow = pipe.flow(*pair, features, features, iters=3)[-1]
        torch.testing.assert_close(flow, raft(*pair, iters=3)[-1], rtol=0, atol=1e-3)


def test_parts_from_elsewhere(daflow, restoration, tiny_weights, tmp_path):
    """A bare transformer folder with --vae and --prompt; half precision; other layers."""
    prompt = {"prompt_embeds": torch.randn(1, 16), "pooled_prompt_embeds": torch.randn(16)}
    save_file(prompt, tmp_path / "null.safetensors")
    code, _, err = daflow(
        *("convert", "--raft", tiny_weights, "--dit4sr", restoration / "transformer", "-o", tmp_path / "out"),
        *("--vae", restoration / "vae", "--prompt", tmp_path / "null.safetensors", "--flow", "daflow-tiny"),
        *("--tap-layers", 0, 2, 3, 7, "--correlation", "sum", "--dtype", "bfloat16"),
    )
    assert (code, err) == (0, "")
    pipe = DAFlowPipeline.from_pretrained(tmp_path / "out")
    assert list(pipe.flow.config.tap_layers) == [0, 2, 3, 7]
    assert not pipe.flow.gate.any()
    assert torch.equal(pipe.prompt.prompt_embeds, prompt["prompt_embeds"])
    (file,) = (tmp_path / "out/transformer").glob("*.safetensors")
    assert load_file(file)["proj_out.weight"].dtype == torch.bfloat16
    assert pipe.scheduler.config.shift == 3.0


def test_refusals(refused, restoration, tiny_weights, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no tensors")
    PixelUnshuffleVAE(4, 48).save_pretrained(tmp_path / "vae48")
    given = ("convert", "--raft", tiny_weights, "--dit4sr", restoration, "--flow", "daflow-tiny")
    bare = (*given[:3], "--dit4sr", restoration / "transformer", "-o", tmp_path / "out")
    for arguments, message in (
        (("convert", "-o", tmp_path / "out"), "give one RAFT weights file to convert, or both --raft and --dit4sr"),
        ((*given[:3], "-o", tmp_path / "out"), "both --raft and --dit4sr"),
        ((*given, "-o", tmp_path / "full"), "it exists; give a new folder"),
        ((*given, "-o", tmp_path / "none/out"), f"the folder {tmp_path / 'none'} does not exist"),
        (bare, "vae does not exist; give it by --vae"),
        ((*bare, "--vae", restoration / "vae"), "prompt does not exist; give it by --prompt"),
        ((*given[:4], tmp_path / "empty", "-o", tmp_path / "out"), "neither config.json nor transformer/config.json"),
        ((*given, "-o", tmp_path / "out", "--tap-layers", "1", "2", "3", "8"), "the transformer has layers 0..7"),
        ((*given, "-o", tmp_path / "out", "--tap-layers", "1"), "as many as scales"),
        ((*given[:2], tmp_path / "none.pth", *given[3:], "-o", tmp_path / "out"), "none.pth does not exist"),
        ((*given, "-o", tmp_path / "out", "--vae", tmp_path / "vae48"), "48 latent channels but the transformer takes"),
        ((*given, "-o", tmp_path / "out", "--vae", tmp_path / "empty"), "empty is no VAE: config.json is missing"),
        ((*given, "-o", tmp_path / "out", "--prompt", tmp_path / "text"), "text: no readable safetensors file ("),
        (
            (*given, "-o", tmp_path / "out", "--prompt", restoration / "vae"),
            "vae does not fit Prompt: missing keys (2)",
        ),
        ((*given, "-o", tmp_path / "out", "--to", "official"), "--to is for RAFT weights alone"),
        (
            ("convert", tiny_weights, "-o", tmp_path / "out", "--vae", restoration / "vae"),
            "--vae is for a DA-Flow folder",
        ),
    ):
        assert message in refused(*arguments)
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))  # nothing half made is left


def test_list(daflow):
    code, out, err = daflow("list", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [model["name"] for model in found] == [model.name for model in list_models()]
    assert all(model["parameters"] > 0 and model["licence"] and model["weights"] for model in found)
    code, out, _ = daflow("list")
    assert code == 0
    for model in list_models():
        assert model.name in out
        assert model.licence in out
