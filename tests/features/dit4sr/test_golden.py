"""The transformer equals the official DiT4SR code, in both key modes, step by step and lifted."""

import json

import pytest
import torch

from daflow_ext.features.dit4sr import DiT4SRTransformer2DModel

MODES = ["hq_renorm", "own"]
BACKENDS = ["reference", "sdpa"]


def _model(golden, mode, dtype=torch.float32, backend="auto", **config):
    model = DiT4SRTransformer2DModel(**{**golden.config, **config}, lq_key_mode=mode, keep_unused_attn2_text=True)
    model.load_state_dict({key: tensor.float() for key, tensor in golden.state.items()}, strict=True)
    model.set_attention_backend(backend)
    return model.eval().to(dtype)


def _arguments(golden, case, timestep, dtype=torch.float32, frames=False):
    inputs = golden.inputs
    hq, lq = inputs[f"{case}/hq"].to(dtype), inputs[f"{case}/lq"].to(dtype)
    if hq.dim() == 4:
        hq, lq = (hq[None], lq[None]) if frames else (hq[:, None], lq[:, None])
    rows = hq.shape[0]
    return {
        "hidden_states": hq,
        "lq_hidden_states": lq,
        "encoder_hidden_states": inputs[f"{case}/text"][:rows].to(dtype),
        "pooled_projections": inputs[f"{case}/pooled"][:rows].to(dtype),
        "timestep": inputs[f"timestep/{timestep}"][:rows],
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("case", "name"),
    [("b1", "b1_t1000"), ("b1", "b1_t750"), ("b1", "b1_t250"), ("b3", "b3_t750"), ("b3mix", "b3mix")],
)
@torch.no_grad()
def test_output_equals_official(golden, mode, case, name, backend):
    official = golden(f"official_{mode}")
    out = _model(golden, mode, backend=backend)(**_arguments(golden, case, name))
    assert (out.sample[:, 0] - official[f"{name}/f32/sample"]).abs().max() < 1e-5


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_control_conv_scale(golden, mode):
    official = golden(f"official_{mode}")
    key = next(key for key in official if key.endswith("f32/sample_convscale1.0"))
    name = key.split("/")[0]
    case = name.split("_")[0]
    out = _model(golden, mode, control_conv_scale=1.0)(**_arguments(golden, case, name))
    assert (out.sample[:, 0] - official[key]).abs().max() < 1e-5


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_taps_equal_official_queries_and_keys(golden, mode):
    official = golden(f"official_{mode}")
    out = _model(golden, mode)(**_arguments(golden, "b1", "b1_t750"), tap_layers=range(4))
    for layer in range(4):
        for taps, name in ((out.queries, "attn_q_hq"), (out.keys, "attn_k_hq")):
            truth = official[f"b1_t750/f32/block{layer}/{name}"]  # [B, heads, N, d]
            ours = taps[layer][:, 0].unflatten(-1, (4, 16)).transpose(1, 2)
            assert (ours - truth).abs().max() < 2e-5


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_every_block_equals_official(golden, mode):
    official = golden(f"official_{mode}")
    model = _model(golden, mode)
    seen = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda module, arguments, output: seen.append(output[:3]))
    model(**_arguments(golden, "b1", "b1_t750"))
    for index, streams in enumerate(seen):
        for name, stream in zip(("hq", "lq", "text"), streams, strict=True):
            if stream is None:
                assert f"b1_t750/f32/block{index}/text" not in official
            else:
                truth = official[f"b1_t750/f32/block{index}/{name}"]
                assert (stream[:, 0] - truth).abs().max() < 2e-5, (index, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("golden_mode", "lift"), [("attn2_lifted", "all"), ("attn2_per_frame", "joint"), ("no_lift", "none")]
)
@torch.no_grad()
def test_lifted_equals_derived(golden, mode, golden_mode, lift, backend):
    derived = golden("derived_lifted")
    model = _model(golden, mode, torch.float64, backend, lift=lift)
    checked = 0
    for case, input_case, timestep in (("b1f3_t750", "b3", "b3_t750"), ("b2f3", "b2f3", "b2f3"), ("ns", "ns", "ns")):
        key = f"{mode}/{golden_mode}/{case}/f64/sample"
        if key not in derived:
            continue
        arguments = _arguments(golden, input_case, timestep, torch.float64, frames=True)
        assert (model(**arguments).sample - derived[key]).abs().max() < 1e-10, key
        checked += 1
    assert checked


@torch.no_grad()
def test_half_precision_stays_within_the_stated_rounding(golden):
    official = golden("official_hq_renorm")["b1_t750/f32/sample"]
    for dtype, bound in ((torch.bfloat16, 3e-2), (torch.float16, 4e-3)):
        out = _model(golden, "hq_renorm", dtype)(**_arguments(golden, "b1", "b1_t750", dtype)).sample[:, 0].float()
        assert (out - official).norm() / official.norm() < bound


def test_dead_tensors_do_not_matter_and_unused_gradients_are_none(golden):
    model = _model(golden, "hq_renorm")
    arguments = _arguments(golden, "b1", "b1_t750")
    model(**arguments).sample.square().sum().backward()
    dead = [
        "attn2.add_",
        "attn2.to_add_out",
        "attn2.norm_added_",
        "to_k_control",
        "3.attn.add_q_proj",
        "3.attn.norm_added_q",
    ]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == any(part in name for part in dead), name


def test_full_size_key_list(golden):
    """All 1383 keys with their shapes, without allocating 2.7 B parameters."""
    keys = json.loads((golden.folder / "dit4sr_keys.json").read_text())
    listed = keys.get("keys", keys)
    expected = {
        name: tuple(entry["shape"])
        for name, entry in (listed.items() if isinstance(listed, dict) else ((e["name"], e) for e in listed))
    }
    with torch.device("meta"):
        model = DiT4SRTransformer2DModel(keep_unused_attn2_text=True)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(expected) == 1383
    assert ours == expected
    assert sum(p.numel() for p in model.parameters()) == 2_716_814_144
