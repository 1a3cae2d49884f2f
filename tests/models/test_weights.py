"""Weights files: names, round trips, refusals, and `daflow convert`."""

import argparse
import pathlib
import re

import pytest
import safetensors.torch
import torch

from daflow_ext.cli import convert
from daflow_ext.models import RAFT, names, weights

SIZES = [pytest.param(True, id="small"), pytest.param(False, id="large")]
WEIGHTS = {"raft-small.pth": True, "raft-sintel.pth": False}


def same(first: RAFT, second: RAFT) -> bool:
    """Equal states; nothing that a file could have left at its random start."""
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(params=SIZES)
def model(request) -> RAFT:
    """A model whose every tensor is random, running statistics included."""
    model = RAFT(request.param)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand_like(tensor) if tensor.is_floating_point() else torch.tensor(7))
    return model


@pytest.mark.parametrize("naming", weights.NAMINGS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_round_trip(model, naming, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    weights.write(model.state_dict(), model.config, path, naming)
    loaded = RAFT.from_pretrained(path, memory="on_the_fly", dropout=0.1)
    assert same(loaded, model)
    assert not loaded.training
    assert loaded.memory == "on_the_fly"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "large"])
def test_torchvision_takes_our_weights_and_gives_our_flow(with_torchvision, size):
    """Strictly loaded by its own class, and back; its images are in [-1, 1]."""
    code = f"""
import torch
from torchvision.models.optical_flow import raft_{size}
from daflow_ext import RAFT
from daflow_ext.models import names
torch.manual_seed(0)
ours, theirs = RAFT(small={size == "small"}).eval(), raft_{size}().eval()
theirs.load_state_dict(names.to_torchvision(ours.state_dict()), strict=True)
image1, image2 = torch.rand(2, 1, 3, 136, 168, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    flow = ours(255 * image1, 255 * image2, iters=4, test_mode=True)[1]
    print((theirs(2 * image1 - 1, 2 * image2 - 1, num_flow_updates=4)[-1] - flow).abs().max().item(), flow.std().item())
back = names.from_torchvision(theirs.state_dict(), ours.state_dict())
assert back.keys() == ours.state_dict().keys()
assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())
"""
    difference, spread = map(float, with_torchvision(code).split())
    assert difference < 1e-3 < 0.1 < spread


def test_torchvision_names(model):
    """torchvision's raft_small / raft_large: as many parameters, under the names of its module tree."""
    state = names.to_torchvision(model.state_dict())
    floating = [t for name, t in state.items() if "running" not in name and "num_batches" not in name]
    assert sum(t.numel() for t in floating) == sum(p.numel() for p in model.parameters())
    expected = {
        "feature_encoder.convnormrelu.0.weight": "fnet.conv1.weight",
        "feature_encoder.layer1.1.convnormrelu2.0.bias": "fnet.layer1.1.conv2.bias",
        "context_encoder.layer3.0.downsample.0.weight": "cnet.layer3.0.downsample.0.weight",
        "context_encoder.conv.bias": "cnet.conv2.bias",
        "update_block.motion_encoder.convcorr1.0.weight": "update_block.encoder.convc1.weight",
        "update_block.motion_encoder.convflow2.0.weight": "update_block.encoder.convf2.weight",
        "update_block.motion_encoder.conv.0.weight": "update_block.encoder.conv.weight",
        "update_block.flow_head.conv2.bias": "update_block.flow_head.conv2.bias",
    }
    if model.small:
        expected |= {
            "update_block.recurrent_block.convgru1.convq.weight": "update_block.gru.convq.weight",
            "feature_encoder.layer2.0.convnormrelu3.0.weight": "fnet.layer2.0.conv3.weight",
        }
    else:
        expected |= {
            "context_encoder.convnormrelu.1.running_mean": "cnet.norm1.running_mean",
            "context_encoder.layer2.0.convnormrelu2.1.weight": "cnet.layer2.0.norm2.weight",
            "context_encoder.layer2.0.downsample.1.running_var": "cnet.layer2.0.norm3.running_var",
            "update_block.motion_encoder.convcorr2.0.bias": "update_block.encoder.convc2.bias",
            "update_block.recurrent_block.convgru2.convr.weight": "update_block.gru.convr2.weight",
            "mask_predictor.convrelu.0.weight": "update_block.mask.0.weight",
            "mask_predictor.conv.bias": "update_block.mask.2.bias",
        }
    official = model.state_dict()
    for theirs, ours in expected.items():
        assert torch.equal(state[theirs], official[ours]), theirs
    roots = {"feature_encoder", "context_encoder", "update_block"} | ({"mask_predictor"} if not model.small else set())
    assert {name.partition(".")[0] for name in state} == roots
    assert not any(part in name for name in state for part in ("fnet", "cnet", "norm3", "convc1", "convf1"))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_files_load_strictly(shared, prefix, tmp_path):
    for file, small in WEIGHTS.items():
        content = torch.load(shared / "weights" / file, map_location="cpu", weights_only=True)
        bare = {name.removeprefix("module."): tensor for name, tensor in content.items()}
        path = tmp_path / file
        torch.save({prefix + name: tensor for name, tensor in bare.items()}, path)
        model = RAFT.from_pretrained(path)
        assert model.small is small
        state = model.state_dict()
        assert state.keys() == bare.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in bare.items())


def test_training_checkpoints_are_unwrapped(model, tmp_path):
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    assert same(RAFT.from_pretrained(tmp_path / "checkpoint.pth"), model)


@pytest.mark.parametrize(("levels", "radius"), [(4, 4), (4, 3), (2, 4), (3, 1), (1, 5)])
def test_levels_and_radius_are_read_from_the_shapes(levels, radius, tmp_path):
    model = RAFT(small=True, corr_levels=levels, corr_radius=radius)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert RAFT.from_pretrained(tmp_path / "w.pth").config == model.config


def _refusal(path, **options) -> str:
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        RAFT.from_pretrained(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_weights_of_another_model(tmp_path):
    path = tmp_path / "lpips.safetensors"
    safetensors.torch.save_file({"lin0.weight": torch.zeros(1), "lin1.weight": torch.zeros(1)}, path)
    message = _refusal(path)
    assert "not RAFT weights" in message
    assert "update_block.encoder.convc1.weight" in message
    assert "lin0.weight, lin1.weight" in message


def test_weights_of_a_relative(model, tmp_path):
    """Most of RAFT and something else: the first names that differ are listed, the rest counted."""
    state = dict(model.state_dict())
    for name in [name for name in state if name.startswith("cnet.layer1")]:
        state[f"extra.{name}"] = state.pop(name)
    path = tmp_path / "gma.pth"
    torch.save(state, path)
    message = _refusal(path)
    assert "missing: cnet.layer1.0.conv1.weight" in message
    assert "unexpected: extra.cnet.layer1.0.conv1.weight" in message
    assert "more" in message


def test_options_that_contradict_the_file(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(RAFT(small=True).state_dict(), path)
    message = _refusal(path, corr_radius=4)
    assert "of another shape: update_block.encoder.convc1.weight [96, 196, 1, 1] (expected [96, 324, 1, 1])" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 7, 100, 20_000, -1])
def test_truncated_files(suffix, kept, tmp_path):
    whole = tmp_path / f"whole{suffix}"
    model = RAFT(small=True)
    weights.write(model.state_dict(), model.config, whole)
    path = tmp_path / f"part{suffix}"
    path.write_bytes(whole.read_bytes()[:kept])
    assert "not a readable weights file" in _refusal(path)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "evil.pth"
    torch.save({"fnet.conv1.weight": Evil()}, path)
    assert "not a readable weights file" in _refusal(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"epoch": 3}, {1: torch.zeros(1)}, {"state_dict": {}}])
def test_files_without_a_state(content, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    assert "expected a dictionary of tensors" in _refusal(path)


def test_a_checkpoint_under_another_key_and_a_whole_model(tmp_path):
    model, path = RAFT(small=True), tmp_path / "w.pth"
    torch.save({"model": model.state_dict(), "optimizer": {}, "step": 3}, path)
    assert "it holds 'model': OrderedDict, 'optimizer': dict, 'step': int" in _refusal(path)
    torch.save(model, path)
    assert "save the state_dict()" in _refusal(path)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_damaged_values_are_named(value, tmp_path):
    state, path = RAFT(small=True).state_dict(), tmp_path / "w.pth"
    state["fnet.conv2.bias"][3] = value
    torch.save(state, path)
    assert "not finite: fnet.conv2.bias" in _refusal(path)


def test_a_tensor_without_dimensions(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"update_block.encoder.convc1.weight": torch.tensor(1.0)}, path)
    assert "four dimensions expected" in _refusal(path)


@pytest.mark.parametrize(
    "text",
    [
        "{oops",
        "[1]",
        "null",
        '{"small": true}',
        '{"small": true, "corr_levels": 4, "corr_radius": 3, "backend": "cpu"}',
        '{"small": "no", "corr_levels": 4, "corr_radius": 3}',
        '{"small": true, "corr_levels": "4", "corr_radius": 3}',
        '{"small": true, "corr_levels": 4, "corr_radius": 3.0}',
        '{"small": true, "corr_levels": 4, "corr_radius": -4}',
        '{"small": true, "corr_levels": 10000000000, "corr_radius": 3}',
    ],
)
def test_metadata_that_does_not_describe_the_tensors(text, tmp_path):
    path = tmp_path / "w.safetensors"
    state = {name: tensor.clone() for name, tensor in RAFT(small=True).state_dict().items()}
    safetensors.torch.save_file(state, path, metadata={"daflow_ext.raft": text})
    assert "metadata 'daflow_ext.raft' does not describe its tensors" in _refusal(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        RAFT.from_pretrained(tmp_path / "none.pth")


def _convert(*arguments) -> int:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    return convert.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.parametrize("naming", weights.NAMINGS)
def test_convert(model, naming, tmp_path, capsys):
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    torch.save(model.state_dict(), source)
    target.write_text("an older file")
    assert _convert(source, "-o", target, "--to", naming) == 0
    assert str(target) in capsys.readouterr().out
    assert same(RAFT.from_pretrained(target), model)
    assert target.stat().st_mode == source.stat().st_mode  # readable by whom the umask allows
    assert safetensors.torch.load_file(target).keys() == weights.renamed(model.state_dict(), naming).keys()


def test_convert_names_an_absent_input_beside_a_present_output(tmp_path):
    (tmp_path / "out.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        _convert(tmp_path / "none.pth", "-o", tmp_path / "out.pth")


def test_convert_refuses_its_own_input(tmp_path):
    source = tmp_path / "in.pth"
    torch.save(RAFT(small=True).state_dict(), source)
    link = tmp_path / "link.pth"
    link.symlink_to(source)
    before = source.read_bytes()
    for target in (source, link):
        with pytest.raises(ValueError, match="is the input itself"):
            _convert(source, "-o", target)
    assert source.read_bytes() == before


def test_convert_leaves_the_target_whole_when_it_fails(tmp_path, monkeypatch):
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    torch.save(RAFT(small=True).state_dict(), source)
    target.write_text("an older file")

    def disk_full(path, content):
        path.write_text("half a fi")
        raise OSError("no space left")

    monkeypatch.setattr(pathlib.Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="no space"):
        _convert(source, "-o", target)
    assert target.read_text() == "an older file"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]
    with pytest.raises(ValueError, match=r"suffix '\.bin'"):
        _convert(source, "-o", tmp_path / "out.bin")
