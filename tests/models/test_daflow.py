"""DA-Flow's flow network: the paper's equations (4.4), the start from RAFT, ablations, files, errors."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")

from daflow_ext import CorrBlock, DAFlow, read_image
from daflow_ext.features import HybridFeatures
from daflow_ext.models import RAFT

HEIGHT, WIDTH, CHANNELS = 64, 80, 12
LAYERS = (1, 3)
SMALL_HEADS = {
    "tap_layers": LAYERS,
    "token_channels": CHANNELS,
    "match_channels": 16,
    "context_channels": 10,
    "head_channels": 8,
    "tap_channels": None,
    "scales": (1, 2),
}
BOTH = pytest.mark.parametrize("correlation", ["concat", "sum"])
HEADS = pytest.mark.parametrize("upsampling", ["dpt", "bilinear"])


def network(**config) -> DAFlow:
    """RAFT-small and small heads whose maps are as large as the encoders'; the gate is open."""
    return matters(DAFlow(**{"small": True, **SMALL_HEADS, **config}).eval())


def matters(model: DAFlow, strength: float = 10) -> DAFlow:
    for head in model.heads.children():
        fan_in = head.output.weight[0].numel()
        torch.nn.init.normal_(head.output.weight, std=strength * fan_in**-0.5)
    if model.config.correlation == "sum":
        torch.nn.init.constant_(model.gate, 0.7)
    return model


def images(batch: int = 1) -> list[torch.Tensor]:
    return [(torch.rand(batch, 3, HEIGHT, WIDTH) * 255).byte() for _ in range(2)]


def taps(batch: int = 1, dtype: torch.dtype = torch.float32) -> dict[int, torch.Tensor]:
    return {layer: torch.randn(batch, HEIGHT * WIDTH // 256, CHANNELS, dtype=dtype) for layer in LAYERS}


def features(model: DAFlow, image1, image2, queries, keys):
    return model.features(*model.raft.frames(image1, image2), queries, keys)


# ---- the equations of section 4.4 ----------------------------------------------------------------------------------


@HEADS
@torch.no_grad()
def test_hybrid_features_are_the_encoders_beside_the_heads(upsampling):
    """F_k = [E_img(I_k), DPT_Q(Q_k)]; F_{k+1} = [E_img(I_{k+1}), DPT_K(K_{k+1})]; ctx = [E_ctx(I_k), DPT_ctx(Q_k)]."""
    model, pair, queries, keys = network(upsampling=upsampling), images(2), taps(2), taps(2)
    fmaps1, fmaps2, net, inp = features(model, *pair, queries, keys)
    fmap1, fmap2, raft_net, raft_inp = model.raft.features(*model.raft.frames(*pair))
    grid = (HEIGHT // 16, WIDTH // 16)
    q, k = [queries[layer] for layer in LAYERS], [keys[layer] for layer in LAYERS]
    expected = [
        (fmaps1[0], fmap1),
        (fmaps1[1], model.heads.query(q, grid)),
        (fmaps2[0], fmap2),
        (fmaps2[1], model.heads.key(k, grid)),
        (net, raft_net),
        (inp[:, : model.raft.context_dim], raft_inp),
        (inp[:, model.raft.context_dim :], model.heads.context(q, grid).relu()),
    ]
    for actual, truth in expected:
        assert actual.shape[-2:] == (HEIGHT // 8, WIDTH // 8)
        torch.testing.assert_close(actual, truth, rtol=0, atol=1e-6)
    assert fmaps1[1].shape[1] == fmaps2[1].shape[1] == 16
    assert inp.shape[1] == model.raft.context_dim + 10


@pytest.mark.parametrize("encoders", [True, False])
def test_nothing_of_the_next_frame_leaks_into_context_and_queries(encoders):
    """The gradient of everything of frame k with respect to image2 and the keys is none; that of F_{k+1} is not."""
    model, pair = network(encoders=encoders), [image.float().requires_grad_() for image in images()]
    queries, keys = taps(), taps()
    for tap in (*queries.values(), *keys.values()):
        tap.requires_grad_()
    fmaps1, fmaps2, net, inp = features(model, *pair, queries, keys)

    def reached(*outputs):
        sources = [pair[0], pair[1], *queries.values(), *keys.values()]
        total = sum(output.square().sum() for output in outputs)
        found = torch.autograd.grad(total, sources, retain_graph=True, allow_unused=True)
        seen = [gradient is not None and bool(gradient.any()) for gradient in found]
        return {"image1": seen[0], "image2": seen[1], "queries": all(seen[2:4]), "keys": any(seen[4:])}

    assert reached(*fmaps1) == {"image1": encoders, "image2": False, "queries": True, "keys": False}
    assert reached(*fmaps2) == {"image1": False, "image2": encoders, "queries": False, "keys": True}
    assert reached(net, inp) == {"image1": encoders, "image2": False, "queries": True, "keys": False}


@torch.no_grad()
def test_the_flow_asks_the_first_frame_and_answers_in_the_second():
    """Each input, replaced, changes the flow; swapping queries and keys is not the same."""
    model, pair, queries, keys = network(), images(), taps(), taps()
    flow = model(*pair, queries, keys, iters=2)[-1]
    for changed in ((*pair, taps(), keys), (*pair, queries, taps()), (*pair, keys, queries)):
        assert (model(*changed, iters=2)[-1] - flow).abs().mean() > 1e-4


@torch.no_grad()
def test_concatenated_correlation_is_that_of_the_joined_maps():
    """(<E_img, E_img> + <Q, K>) / sqrt(C + c), at a pixel chosen by hand, whole position, centre of the window."""
    model = network()
    fmaps1, fmaps2, *_ = features(model, *images(), taps(), taps())
    coords = torch.zeros(1, 2, 8, 10)
    coords[:, 0], coords[:, 1] = 4, 5  # every pixel looks at x = 4, y = 5
    window = model.correlation(fmaps1, fmaps2)(coords)
    products = sum(torch.dot(a[0, :, 2, 7], b[0, :, 5, 4]) for a, b in zip(fmaps1, fmaps2, strict=True))
    side = 2 * model.raft.corr_radius + 1
    centre = side * side // 2
    torch.testing.assert_close(window[0, centre, 2, 7], products / (128 + 16) ** 0.5, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_summed_correlation_is_the_gated_sum():
    model = network(correlation="sum")
    fmaps1, fmaps2, *_ = features(model, *images(), taps(), taps())
    coords = torch.rand(1, 2, 8, 10) * 8
    encoders, heads = (CorrBlock(a, b, 4, 3, backend="reference")(coords) for a, b in zip(fmaps1, fmaps2, strict=True))
    actual = model.correlation(fmaps1, fmaps2)(coords)
    torch.testing.assert_close(actual, encoders + 0.7 * heads, rtol=1e-4, atol=1e-4)
    assert heads.abs().mean() > 1e-3


@HEADS
def test_heads_share_no_parameter(upsampling):
    heads = HybridFeatures(CHANNELS, 16, 10, channels=8, scales=(1, 2), upsampling=upsampling)
    owned = [{p.data_ptr() for p in head.parameters()} for head in (heads.query, heads.key, heads.context)]
    assert all(owned)
    assert len(set.union(*owned)) == sum(map(len, owned)) == len(list(heads.parameters()))
    assert not torch.equal(heads.query.output.weight, heads.key.output.weight)


# ---- from RAFT -----------------------------------------------------------------------------------------------------


@BOTH
@HEADS
@pytest.mark.parametrize("small", [True, False], ids=["small", "large"])
@torch.no_grad()
def test_the_start_is_raft(small, correlation, upsampling):
    """In float64, where rounding is no excuse; and with a foreign flow to start at."""
    raft = RAFT(small).double().eval()
    model = DAFlow.from_raft(raft.float(), correlation=correlation, upsampling=upsampling, **SMALL_HEADS).double()
    raft.double()
    pair, start = images(), torch.randn(1, 2, 8, 10).double()
    queries, keys = taps(dtype=torch.float64), taps(dtype=torch.float64)
    low, up = model(*pair, queries, keys, iters=3, flow_init=start, test_mode=True)
    raft_low, raft_up = raft(*pair, iters=3, flow_init=start, test_mode=True)
    assert (low - start).abs().mean() > 1e-3
    # "concat" scales an encoder by a factor that float32 weights round to
    atol = 1e-9 if correlation == "sum" else 1e-5
    torch.testing.assert_close(low, raft_low, rtol=0, atol=atol)
    torch.testing.assert_close(up, raft_up, rtol=0, atol=10 * atol)


@BOTH
@HEADS
def test_every_new_parameter_moves(correlation, upsampling):
    """What is zero moves at the first step, all that is new at the second.

    It cannot be one step: the flow is RAFT's because a head's map is multiplied by zeros (gate, GRU columns) or is zero
    (key head), and where the product vanishes so does the gradient of the other factor: a saddle of a bilinear form,
    left as soon as the zeros have moved. Weight decay is off, or it would move parameters without any gradient.
    """
    raft = RAFT(small=True).eval()
    model = DAFlow.from_raft(raft, correlation=correlation, upsampling=upsampling, **SMALL_HEADS)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    new = {name for name in before if name.startswith("heads.") or name == "gate"}
    columns = slice(96 + 64, 96 + 64 + 10)  # [hidden | context | new | motion] of RAFT-small
    gru = {name for name in before if ".gru." in name and name.endswith("weight")}
    zeros = {"gate"} if correlation == "sum" else {"heads.key.output.weight", "heads.key.output.bias"}
    assert not any(before[name].any() for name in zeros)
    assert not any(before[name][:, columns].any() for name in gru)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    pair, queries, keys = images(), taps(), taps()

    def step() -> set[str]:
        optimizer.zero_grad()
        sum((flow - 1).abs().mean() for flow in model(*pair, queries, keys, iters=2)).backward()
        optimizer.step()
        return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}

    assert step() & new == zeros
    for name in gru:
        assert model.get_parameter(name)[:, columns].any(), name
    assert new <= step()


@torch.no_grad()
def test_new_columns_stand_between_context_and_motion():
    raft = RAFT().eval()
    model = DAFlow.from_raft(raft, **SMALL_HEADS)
    for name, old in raft.update_block.gru.named_parameters():
        new = model.raft.update_block.gru.get_parameter(name)
        if name.endswith("bias"):
            assert torch.equal(new, old)
            continue
        assert new.shape[1] == old.shape[1] + 10
        assert torch.equal(torch.cat([new[:, :256], new[:, 266:]], dim=1), old)
        assert not new[:, 256:266].any()


@torch.no_grad()
def test_without_encoders_only_the_update_operator_is_rafts():
    raft = RAFT(small=True).eval()
    model = DAFlow.from_raft(raft, encoders=False, **SMALL_HEADS)
    assert not any("fnet" in name or "cnet" in name for name in model.state_dict())
    for name, old in raft.update_block.gru.named_parameters():
        new = model.raft.update_block.gru.get_parameter(name)
        if name.endswith("weight"):
            assert torch.equal(new[:, :96], old[:, :96])
            assert torch.equal(new[:, 106:], old[:, 160:])
            assert not new[:, 96:106].any()
    assert torch.equal(model.raft.update_block.encoder.convc1.weight, raft.update_block.encoder.convc1.weight)


# ---- the ablations -------------------------------------------------------------------------------------------------


@HEADS
@torch.no_grad()
def test_without_encoders_the_flow_is_the_features_alone(upsampling):
    """Images give the size only; the hidden state starts at the tanh of the context head."""
    model = network(encoders=False, upsampling=upsampling)
    queries, keys = taps(), taps()
    flow = model(*images(), queries, keys, iters=2)[-1]
    assert torch.equal(model(*images(), queries, keys, iters=2)[-1], flow)
    assert not torch.equal(model(*images(), taps(), keys, iters=2)[-1], flow)
    *_, net, inp = features(model, *images(), queries, keys)
    context = model.heads.context(list(queries.values()), (4, 5))
    assert context.shape[1] == 96 + 10
    torch.testing.assert_close(net, context[:, :96].tanh())
    torch.testing.assert_close(inp, context[:, 96:].relu())
    with pytest.raises(ValueError, match="encoders is False"):
        network(encoders=False, correlation="sum")


@pytest.mark.parametrize("encoders", [True, False])
@BOTH
@HEADS
def test_every_variant_trains(encoders, correlation, upsampling):
    if not encoders and correlation == "sum":
        pytest.skip("refused, see above")
    model = network(encoders=encoders, correlation=correlation, upsampling=upsampling, features="tokens")
    flows = model(*images(), taps(), taps(), iters=2)
    assert [flow.shape for flow in flows] == [(1, 2, HEIGHT, WIDTH)] * 2
    sum((flow - 1).abs().mean() for flow in flows).backward()
    for name, parameter in model.named_parameters():
        # a bias in front of an instance norm cancels
        if not (".fnet." in name and name.endswith("bias") and "fnet.conv2" not in name):
            assert parameter.grad.abs().max() > 0, name


# ---- as RAFT -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_results_have_rafts_form():
    model, pair, queries, keys = network(), images(2), taps(2), taps(2)
    flows = model(*pair, queries, keys, iters=3)
    low, up = model(*pair, queries, keys, iters=3, test_mode=True)
    assert torch.equal(up, flows[-1])
    assert low.shape == (2, 2, 8, 10)
    assert model(*pair, queries, keys, iters=1, upsample=False, test_mode=True)[1] is None
    for index in range(2):  # samples of a batch do not mix
        one = (
            [x[index : index + 1] for x in pair],
            [{layer: tap[index : index + 1] for layer, tap in t.items()} for t in (queries, keys)],
        )
        alone = model(*one[0], *one[1], iters=3)[-1]
        torch.testing.assert_close(flows[-1][index : index + 1], alone, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_features_come_by_layer_or_in_order():
    model, pair, queries, keys = network(), images(), taps(), taps()
    flow = model(*pair, queries, keys, iters=1)[-1]
    more = {7: torch.zeros(3), **dict(reversed(queries.items()))}
    assert torch.equal(model(*pair, more, list(keys.values()), iters=1)[-1], flow)


@torch.no_grad()
def test_precisions():
    model, pair, queries, keys = network(correlation="sum"), images(), taps(), taps()
    flow = model(*pair, queries, keys, iters=2)[-1]
    halves = [{layer: tap.bfloat16() for layer, tap in t.items()} for t in (queries, keys)]
    assert (model(*pair, *halves, iters=2)[-1] - flow).norm() / flow.norm() < 0.05
    model.raft.mixed_precision = True
    mixed = model(*pair, queries, keys, iters=2)[-1]
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - flow).norm() / flow.norm() < 0.1
    model.raft.mixed_precision = False
    weights = model.bfloat16()(*pair, *halves, iters=2)[-1]
    assert weights.dtype == torch.float32
    assert (weights - flow).norm() / flow.norm() < 0.2


@BOTH
@torch.no_grad()
def test_forward_is_one_graph(correlation):
    model, pair, queries, keys = network(correlation=correlation), images(), taps(), taps()
    traced = torch.compile(model, fullgraph=True, backend="eager")
    actual = traced(*pair, queries, keys, iters=2, test_mode=True)
    for one, other in zip(actual, model(*pair, queries, keys, iters=2, test_mode=True), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


@BOTH
@pytest.mark.parametrize("memory", ["on_the_fly", "volume"])
@torch.no_grad()
def test_memory_and_backends_agree(correlation, memory, backend):
    model, pair, queries, keys = network(correlation=correlation), images(), taps(), taps()
    model.memory = "volume"
    model.set_backend("reference")
    expected = model(*pair, queries, keys, iters=3)[-1]
    model.memory = memory
    model.set_backend(backend)
    assert (model.memory, model.backend) == (memory, backend)
    device = "cuda" if backend == "cuda" else "cpu"
    features = [{layer: tap.to(device) for layer, tap in t.items()} for t in (queries, keys)]
    actual = model.to(device)(*(image.to(device) for image in pair), *features, iters=3)[-1]
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-3)


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"backend must be auto or one of .* got 'fast'"):
        network().set_backend("fast")


@pytest.fixture(scope="module")
def real_pair(shared):
    folder = shared / "data/sintel/alley_1/clean"
    return [read_image(folder / f"frame_000{index}.png")[None, :, :320, :512] for index in (1, 2)]


def real_features() -> list[dict[int, torch.Tensor]]:
    return [{layer: torch.randn(1, 20 * 32, CHANNELS) for layer in LAYERS} for _ in range(2)]


@BOTH
@torch.no_grad()
def test_backends_agree_on_a_real_pair(shared, real_pair, correlation):
    """Official weights, trained heads imitated by random ones that matter; mean difference under 1e-3 px."""
    raft = RAFT.from_pretrained(shared / "weights/raft-small.pth")
    model = matters(DAFlow.from_raft(raft, correlation=correlation, **SMALL_HEADS), strength=3)
    features, flows = real_features(), {}
    for backend in ("reference", "auto"):
        model.set_backend(backend)
        flows[backend] = model(*real_pair, *features, iters=12, test_mode=True)[1]
    assert (flows["auto"] - flows["reference"]).abs().mean() < 1e-3
    assert (flows["auto"] - raft(*real_pair, iters=12, test_mode=True)[1]).abs().mean() > 1e-2  # the heads took part


@torch.no_grad()
def test_concatenation_needs_the_encoder_scaled(shared, real_pair):
    """On official weights too the start is RAFT; without the factor every look-up would shrink by sqrt(C / (C + c))."""
    raft = RAFT.from_pretrained(shared / "weights/raft-small.pth")
    model = DAFlow.from_raft(raft, **{**SMALL_HEADS, "match_channels": 128})
    expected, features = raft(*real_pair, iters=6, test_mode=True)[1], real_features()
    assert (model(*real_pair, *features, iters=6, test_mode=True)[1] - expected).abs().mean() < 1e-3
    model.raft.fnet.load_state_dict(raft.fnet.state_dict())
    assert (model(*real_pair, *features, iters=6, test_mode=True)[1] - expected).abs().mean() > 0.03


# ---- files and errors ----------------------------------------------------------------------------------------------


@BOTH
@torch.no_grad()
def test_round_trip(correlation, tmp_path):
    model = network(small=correlation == "sum", correlation=correlation, features="tokens")
    model.save_pretrained(tmp_path)
    again = DAFlow.from_pretrained(tmp_path)
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in model.config.items() if k[0] != "_"
    }
    pair, queries, keys = images(), taps(), taps()
    assert torch.equal(again(*pair, queries, keys, iters=2)[-1], model(*pair, queries, keys, iters=2)[-1])
    assert not again.training


def test_loading_is_strict(tmp_path, monkeypatch):
    """And what is wrong is said once, by the error: diffusers would log the name of every tensor beside it."""
    logged, handler = [], logging.Handler()
    handler.emit = logged.append
    monkeypatch.setattr(logging.getLogger("diffusers"), "handlers", [handler])
    level = logging.getLogger("diffusers").level
    network().save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    state = load_file(path)
    name = "heads.key.norm.weight"
    tensor = state.pop(name)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"does not fit DAFlow: missing keys \(1\): \['{name}'\]"):
        DAFlow.from_pretrained(tmp_path)
    save_file({**state, name: tensor, "extra": tensor.clone()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected keys \(1\): \['extra'\]"):
        DAFlow.from_pretrained(tmp_path)
    save_file({**state, name: tensor * torch.nan}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"damaged or diverged weights, not finite \(1\): \['{name}'\]"):
        DAFlow.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.safetensors"):
        DAFlow.from_pretrained(tmp_path)
    assert not logged
    assert logging.getLogger("diffusers").level == level


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"correlation": "product"}, "correlation must be one of concat, sum, got 'product'"),
        ({"features": "values"}, "features must be one of query_key, tokens, got 'values'"),
        ({"upsampling": "nearest"}, "upsampling must be one of dpt, bilinear, got 'nearest'"),
        ({"tap_layers": (1,)}, r"tap_layers \(1,\) must increase, and be as many as scales \(1, 2\)"),
        ({"tap_layers": (3, 1)}, r"tap_layers \(3, 1\) must increase"),
        ({"tap_channels": (8,)}, "2 scales but 1 tap_channels"),
        ({"corr_levels": 2.0}, "corr_levels must be an integer >= 1, got 2.0"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(ValueError, match=message):
        network(**config)


@torch.no_grad()
def test_a_part_of_a_checked_image_may_be_dark():
    model, queries, keys = network(), taps(), taps()
    dark = [torch.zeros(1, 3, HEIGHT, WIDTH) for _ in range(2)]
    with pytest.raises(ValueError, match="a float image whose maximum is 0"):
        model(*dark, queries, keys, iters=1)
    flow = model(*dark, queries, keys, iters=1, check_range=False)[-1]
    assert torch.equal(flow, model(*(image.byte() for image in dark), queries, keys, iters=1)[-1])


def test_bad_inputs():
    model, pair, queries, keys = network(), images(), taps(), taps()
    with pytest.raises(ValueError, match=r"keys lack layer\(s\) \[3\], got \[1\]"):
        model(*pair, queries, {1: keys[1]})
    with pytest.raises(ValueError, match=r"queries must be of the 2 layers \[1, 3\], got 1"):
        model(*pair, [queries[1]], keys)
    with pytest.raises(ValueError, match=r"tap 0 must be \[B, 20, 12\] for a 4 x 5 token grid, got \[1, 19, 12\]"):
        model(*pair, {layer: tap[:, 1:] for layer, tap in queries.items()}, keys)
    with pytest.raises(ValueError, match=r"keys are \[2, 20, 12\] on cpu, but the images are a batch of 1 on cpu"):
        model(*pair, queries, taps(2))
    with pytest.raises(ValueError, match=r"images are 56 x 80.*multiples of 16.*InputPadder\(multiple=16\)"):
        model(*(image[:, :, :56] for image in pair), queries, keys)
    with pytest.raises(ValueError, match="iters must be an integer >= 1, got 0"):
        model(*pair, queries, keys, iters=0)
    with pytest.raises(TypeError, match="'small'"):
        DAFlow.from_raft(RAFT(small=True), small=True)
