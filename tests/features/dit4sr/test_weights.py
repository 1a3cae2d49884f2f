"""Folders in diffusers layout load strictly, and the key mode is checked against the weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from daflow_ext.features.dit4sr import DiT4SRTransformer2DModel


@pytest.fixture
def folder(tiny, tmp_path):
    """An "own"-mode model saved with all official tensors under the official class name."""
    model = tiny(lq_key_mode="own", keep_unused_attn2_text=True).float()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    official = {"_class_name": "SD3Transformer2DModel"}
    ours = {"lq_key_mode", "control_conv_scale", "lift", "window", "keep_unused_attn2_text", "prediction"}
    ours.add("_class_name")
    official |= {key: value for key, value in config.items() if key not in ours}
    (tmp_path / "config.json").write_text(json.dumps(official))
    return tmp_path


def test_official_folder_loads_and_round_trips(folder, clip):
    kept = DiT4SRTransformer2DModel.from_pretrained(folder, lq_key_mode="own", keep_unused_attn2_text=True)
    lean = DiT4SRTransformer2DModel.from_pretrained(folder, lq_key_mode="own")
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert kept.state_dict().keys() == stored.keys()
    assert all(torch.equal(kept.state_dict()[key], stored[key]) for key in stored)
    assert len(lean.state_dict()) < len(stored)
    arguments = {key: value.float() for key, value in clip().items()}
    with torch.no_grad():
        assert torch.equal(kept(**arguments).sample, lean(**arguments).sample)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "mismatched"])
def test_every_key_is_accounted_for(folder, damage):
    path = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    name = "transformer_blocks.1.attn.to_q.weight"
    if damage == "missing":
        del state[name]
    elif damage == "unexpected":
        name = "transformer_blocks.1.attn.to_z.weight"
        state[name] = torch.zeros(2)
    else:
        state[name] = torch.zeros(3, 3)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=r"attn\.to_[qz]"):
        DiT4SRTransformer2DModel.from_pretrained(folder, lq_key_mode="own")


def test_key_mode_that_contradicts_the_weights_raises(folder, tiny, tmp_path_factory):
    with pytest.raises(ValueError, match="to_k_control is trained, which belongs to lq_key_mode='own'"):
        DiT4SRTransformer2DModel.from_pretrained(folder)
    assert DiT4SRTransformer2DModel.from_pretrained(folder, check_lq_key_mode=False).config.lq_key_mode == "hq_renorm"
    zero = tiny(lq_key_mode="hq_renorm")
    for name, parameter in zero.named_parameters():
        if "to_k_control" in name:
            parameter.data.zero_()
    other = tmp_path_factory.mktemp("zero")
    zero.save_pretrained(other)
    DiT4SRTransformer2DModel.from_pretrained(other)
    with pytest.raises(ValueError, match="to_k_control is all zero, which belongs to lq_key_mode='hq_renorm'"):
        DiT4SRTransformer2DModel.from_pretrained(other, lq_key_mode="own")


def test_from_sd3_leaves_nothing_on_meta(clip, tiny_config):
    from diffusers import SD3Transformer2DModel

    base = SD3Transformer2DModel(**tiny_config, in_channels=16, patch_size=2, qk_norm="rms_norm")
    model = DiT4SRTransformer2DModel.from_sd3(base)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    state, original = model.state_dict(), base.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in original.items())
    for name, tensor in state.items():
        if "control" not in name:
            continue
        if "to_out_control" in name:
            assert torch.equal(tensor, original[name.replace("to_out_control", "to_out.0")])
        else:
            assert not tensor.any()
    arguments = {key: value.float() for key, value in clip().items()}
    with torch.no_grad():
        assert model(**arguments).sample.isfinite().all()
    with pytest.raises(ValueError, match=r"not an SD3\.5 transformer of this configuration: .*norm1"):
        DiT4SRTransformer2DModel.from_sd3(base, dual_attention_layers=(0, 1, 2))
