"""Properties of the lifted model, and options that must not change its results; no shared data needed."""

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
MODES = ["hq_renorm", "own"]


def _difference(first, second):
    return (first - second).abs().max().item()


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_one_frame_needs_no_lift(tiny, clip, mode):
    arguments = clip(frames=1)
    outputs = [tiny(lift=lift, lq_key_mode=mode)(**arguments).sample for lift in ("none", "joint", "all")]
    assert _difference(outputs[0], outputs[1]) < 1e-12
    assert _difference(outputs[0], outputs[2]) < 1e-12


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_identical_frames_equal_the_single_frame(tiny, clip, mode):
    arguments = clip(frames=1)
    repeated = {**arguments}
    for name in ("hidden_states", "lq_hidden_states"):
        repeated[name] = arguments[name].expand(-1, 3, -1, -1, -1)
    model = tiny(lq_key_mode=mode)
    single, three = model(**arguments).sample, model(**repeated).sample
    assert _difference(three, single.expand_as(three)) < 1e-12


@pytest.mark.parametrize("lift", ["joint", "all"])
@torch.no_grad()
def test_permuting_frames_permutes_outputs_and_frames_do_interact(tiny, clip, lift):
    arguments, order = clip(batch=2, frames=4), [2, 0, 3, 1]
    permuted = {**arguments}
    for name in ("hidden_states", "lq_hidden_states"):
        permuted[name] = arguments[name][:, order]
    model = tiny(lift=lift)
    straight, shuffled = model(**arguments).sample, model(**permuted).sample
    assert _difference(straight[:, order], shuffled) < 1e-12
    assert _difference(straight, tiny(lift="none")(**arguments).sample) > 1e-3


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@torch.no_grad()
def test_window_hides_far_frames(tiny, clip, backend):
    arguments = clip(frames=4)
    model = tiny(window=1, num_layers=1, dual_attention_layers=(0,))
    model.set_attention_backend(backend)
    before = model(**arguments).sample
    arguments["hidden_states"] = arguments["hidden_states"].clone()
    arguments["hidden_states"][:, 3] += 1
    after = model(**arguments).sample
    assert _difference(before[:, :2], after[:, :2]) == 0
    assert _difference(before[:, 2], after[:, 2]) > 1e-6
    wide = tiny(window=3, num_layers=1, dual_attention_layers=(0,))(**arguments).sample
    full = tiny(num_layers=1, dual_attention_layers=(0,))(**arguments).sample
    assert _difference(wide, full) < 1e-12


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_exact_savings_change_nothing(tiny, clip, mode):
    arguments = clip(batch=2)
    plain = tiny(lq_key_mode=mode)(**arguments).sample

    fused = tiny(lq_key_mode=mode)
    fused.fuse_lq_projections()
    fused.fuse_lq_projections()  # a second call must not fold twice
    assert _difference(fused(**arguments).sample, plain) < 1e-11

    assert _difference(tiny(lq_key_mode=mode)(**arguments, share_text=True).sample, plain) < 1e-11

    one_prompt = {**arguments, "pooled_projections": arguments["pooled_projections"][:1].expand(2, -1)}
    expected = tiny(lq_key_mode=mode)(**one_prompt).sample
    tabulated = tiny(lq_key_mode=mode)
    count = sum(p.numel() for p in tabulated.parameters())
    tabulated.tabulate_conditioning([1000.0, 750.0], arguments["pooled_projections"][:1])
    assert sum(p.numel() for p in tabulated.parameters()) < count
    assert _difference(tabulated(**one_prompt).sample, expected) < 1e-7  # the timestep's sine table is float32
    with pytest.raises(ValueError, match="not one of the tabulated"):
        tabulated(**{**one_prompt, "timestep": torch.full((2,), 500.0)})


@torch.no_grad()
def test_early_exit_gives_the_same_taps_and_runs_no_later_layer(tiny, clip):
    arguments, layers = clip(), (0, 2)
    model = tiny()
    full = model(**arguments, tap_layers=layers, tap_tokens=True)
    ran = []
    for index, block in enumerate(model.transformer_blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    early = model(**arguments, tap_layers=layers, tap_tokens=True, early_exit=True)
    assert early.sample is None
    assert ran == [0, 1]
    for taps in ("queries", "keys", "tokens"):
        assert getattr(early, taps).keys() == getattr(full, taps).keys() == set(layers)
        for layer in layers:
            assert _difference(getattr(early, taps)[layer], getattr(full, taps)[layer]) == 0
    assert full.queries[0].shape == (1, 3, 24, 64)


@torch.no_grad()
def test_taps_are_views_of_what_attention_computed(tiny, clip):
    model, kept = tiny(), []
    model.transformer_blocks[1].attn.register_forward_hook(lambda *call: kept.append(call[2][3]))
    output = model(**clip(), tap_layers=(1,))
    for tap, (original,) in zip((output.queries[1], output.keys[1]), zip(*kept, strict=True), strict=True):
        assert tap.data_ptr() == original.data_ptr()
        assert tap.shape == original.flatten(-2).shape


@torch.no_grad()
def test_compiles_in_one_graph_with_its_taps(tiny, clip):
    """With symbolic integers, among which Python's ``in`` finds no layer."""
    model = tiny(num_layers=2, dual_attention_layers=())
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    ours, plain = (call(**clip(), tap_layers=(1,)) for call in (compiled, model))
    assert ours.queries.keys() == ours.keys.keys() == {1}
    assert _difference(ours.sample, plain.sample) < 1e-12
    assert _difference(ours.queries[1], plain.queries[1]) < 1e-12


@pytest.mark.parametrize("saving", ["fuse_lq_projections", "tabulate_conditioning"])
def test_folded_weights_are_not_saved(tiny, clip, tmp_path, saving):
    model = tiny()
    arguments = ([750.0], clip()["pooled_projections"]) if saving == "tabulate_conditioning" else ()
    getattr(model, saving)(*arguments)
    with pytest.raises(ValueError, match="folded for inference and cannot be saved"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_gradient_checkpointing_changes_no_gradient(tiny, clip):
    arguments = clip()
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**arguments).sample.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(_difference(gradients[0][name], gradients[1][name]) < 1e-12 for name in gradients[0])


@torch.no_grad()
def test_per_frame_timesteps_and_texts(tiny, clip):
    arguments = clip(batch=2)
    model = tiny(lift="none")
    expected = model(**arguments).sample
    spread = {
        **arguments,
        "timestep": arguments["timestep"][:, None].expand(2, 3),
        "encoder_hidden_states": arguments["encoder_hidden_states"][:, None].expand(-1, 3, -1, -1),
    }
    assert _difference(model(**spread).sample, expected) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hidden_states": torch.zeros(1, 16, 8, 12)},
            r"must be \[B, F, 16, h, w\], none of them 0, got \[1, 16, 8, 12\]",
        ),
        ({"hidden_states": torch.zeros(1, 0, 16, 8, 12)}, r"none of them 0, got \[1, 0, 16, 8, 12\]"),
        ({"encoder_hidden_states": torch.zeros(1, 10, 31)}, r"must be \[1, \(3,\) M, 32\], got \[1, 10, 31\]"),
        ({"encoder_hidden_states": torch.zeros(1, 2, 10, 32)}, r"must be \[1, \(3,\) M, 32\], got \[1, 2, 10, 32\]"),
        ({"pooled_projections": torch.zeros(2, 24)}, r"pooled_projections must be \[1, 24\], got \[2, 24\]"),
        ({"lq_hidden_states": torch.zeros(1, 3, 16, 8, 10)}, "lq_hidden_states is"),
        (
            {"hidden_states": torch.zeros(1, 3, 16, 7, 12), "lq_hidden_states": torch.zeros(1, 3, 16, 7, 12)},
            "7x12 do not fit",
        ),
        ({"timestep": torch.zeros(5)}, r"timestep must be \[\], \[1\] or \[1, 3\], got \[5\]"),
        ({"tap_layers": [9]}, r"tap_layers \[9\] are outside 0..3"),
        ({"early_exit": True}, "early_exit needs tap_layers"),
        ({"share_text": True, "timestep": torch.zeros(1, 3)}, "share_text needs"),
    ],
)
def test_bad_input_is_one_clear_sentence(tiny, clip, change, message):
    with pytest.raises(ValueError, match=message):
        tiny()(**{**clip(), **change})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lq_key_mode": "fixed"}, "lq_key_mode must be"),
        ({"lift": "some"}, "lift must be one of"),
        ({"qk_norm": None}, "qk_norm must be"),
        ({"window": -1}, "window must be an integer >= 0 or None, got -1"),
    ],
)
def test_bad_config(tiny, config, message):
    with pytest.raises(ValueError, match=message):
        tiny(**config)
