"""RAFT without any data: contracts of forward, gradients, precision, errors."""

import copy

import pytest
import torch
import torch.nn.functional as F

from daflow_ext.models import RAFT

SIZES = [pytest.param(True, id="small"), pytest.param(False, id="large")]


def images(batch: int = 1, height: int = 64, width: int = 72) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth texture and the same moved by 2 px to the right and 1 px down, uint8."""
    texture = F.interpolate(torch.rand(batch, 3, height // 4 + 2, width // 4 + 2), scale_factor=4, mode="bicubic")
    texture = (255 * texture).clamp(0, 255).to(torch.uint8)
    return texture[..., 2 : 2 + height, 4 : 4 + width], texture[..., 1 : 1 + height, 2 : 2 + width]


@pytest.fixture(params=SIZES)
def model(request) -> RAFT:
    return RAFT(request.param).eval()


@pytest.mark.parametrize(("small", "parameters", "entries"), [(True, 990_162, 106), (False, 5_257_536, 179)])
def test_state_is_the_official_one(small, parameters, entries):
    model = RAFT(small)
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = model.state_dict()
    assert len(state) == entries
    shapes = {
        "fnet.layer2.0.downsample.0.weight": (64, 32, 1, 1) if small else (96, 64, 1, 1),
        "fnet.conv2.weight": (128, 96, 1, 1) if small else (256, 128, 1, 1),
        "cnet.conv2.weight": (160, 96, 1, 1) if small else (256, 128, 1, 1),
        "update_block.encoder.convc1.weight": (96, 196, 1, 1) if small else (256, 324, 1, 1),
        "update_block.flow_head.conv2.weight": (2, 128, 3, 3) if small else (2, 256, 3, 3),
    }
    if not small:
        shapes |= {
            "update_block.mask.2.weight": (576, 256, 1, 1),
            "update_block.gru.convq2.weight": (128, 384, 5, 1),
            "cnet.layer3.0.norm3.running_var": (128,),
            "cnet.layer3.0.downsample.1.running_var": (128,),
        }
    for name, shape in shapes.items():
        assert state[name].shape == shape, name


@torch.no_grad()
def test_forward_is_the_five_steps(model):
    image1, image2 = images(2)
    fmap1, fmap2, net, inp = model.features(*model.frames(image1, image2))
    corr = model.correlation(fmap1, fmap2)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    flow_low = torch.zeros(2, 2, 8, 9)
    for _ in range(3):
        net, delta_flow = model.update(net, inp, corr(torch.stack([x, y]) + flow_low), flow_low)
        flow_low = flow_low + delta_flow
    low, up = model(image1, image2, iters=3, test_mode=True)
    torch.testing.assert_close(low, flow_low, rtol=0, atol=1e-5)
    torch.testing.assert_close(up, model.flow(flow_low, net), rtol=0, atol=1e-4)


@torch.no_grad()
def test_modes_agree(model):
    pair = images(2)
    steps, low_steps = model(*pair, iters=4), model(*pair, iters=4, upsample=False)
    assert len(steps) == len(low_steps) == 4
    for iters in (1, 3, 4):  # the state after k of n steps is that of a run of k steps
        low, up = model(*pair, iters=iters, test_mode=True)
        assert torch.equal(low, low_steps[iters - 1])
        assert torch.equal(up, steps[iters - 1])
        assert up.dtype == low.dtype == torch.float32
    low, up = model(*pair, iters=4, upsample=False, test_mode=True)
    assert up is None
    assert torch.equal(low, low_steps[-1])


@torch.no_grad()
def test_flow_init_continues_where_the_hidden_state_does_not_move(model):
    """With closed update gates the hidden state is constant, so 2 + 2 steps must equal 4."""
    for name, bias in model.update_block.gru.named_parameters():
        if name.startswith("convz") and name.endswith("bias"):
            bias.fill_(-1e4)
    pair = images()
    halfway, _ = model(*pair, iters=2, test_mode=True)
    assert halfway.abs().max() > 0.01
    continued = model(*pair, iters=2, flow_init=halfway, upsample=False)[-1]
    torch.testing.assert_close(continued, model(*pair, iters=4, upsample=False)[-1], rtol=0, atol=1e-4)


@torch.no_grad()
def test_flow_init_of_zero_is_none(model):
    pair = images()
    assert torch.equal(model(*pair, iters=2)[-1], model(*pair, iters=2, flow_init=torch.zeros(1, 2, 8, 9))[-1])


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix(model):
    image1, image2 = images(2)
    together = model(image1, image2, iters=2)[-1]
    for index in range(2):
        alone = model(image1[index : index + 1], image2[index : index + 1], iters=2)[-1]
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_uint8_and_float_images_are_the_same(model):
    image1, image2 = images()
    expected = model(image1, image2, iters=1)[0]
    assert torch.equal(model(image1.float(), image2.float(), iters=1)[0], expected)
    assert torch.equal(model(image1, image2.double(), iters=1)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(120, 120), (64, 64), (16, 16), (8, 16)])
def test_small_frames_are_finite(model, height, width):
    """RAFT itself divides by zero below 128 pixels."""
    for memory in ("on_the_fly", "volume"):
        model.memory = memory
        low, up = model(*images(1, height, width), iters=2, test_mode=True)
        assert low.isfinite().all()
        assert up.isfinite().all()
        assert up.shape == (1, 2, height, width)


@torch.no_grad()
def test_memory_and_backends_agree(model):
    pair = images()
    results = {}
    for memory in ("on_the_fly", "volume"):
        for backend in ("reference", "auto"):
            model.memory, model.backend = memory, backend
            results[memory, backend] = model(*pair, iters=3, upsample=False)[-1]
    expected = results.pop(("volume", "reference"))
    for choice, actual in results.items():
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4, msg=lambda text, c=choice: f"{c}: {text}")


@pytest.mark.parametrize("small", SIZES)
def test_every_parameter_gets_a_gradient(small, backend):
    device = "cuda" if backend == "cuda" else "cpu"
    model = RAFT(small, backend=backend).train().to(device)
    model.freeze_bn()
    predictions = model(*(image.to(device) for image in images()), iters=3)
    assert len(predictions) == 3
    truth = torch.tensor([2.0, 1.0], device=device)[None, :, None, None]
    sum(0.8 ** (2 - step) * (flow - truth).abs().mean() for step, flow in enumerate(predictions)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # a bias in front of an instance norm cancels; everything else must move
        if not (name.startswith("fnet") and name.endswith("bias") and not name.startswith("fnet.conv2")):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("small", SIZES)
def test_gradient_of_the_image_is_the_difference_quotient(small):
    model = RAFT(small).double().eval()
    image1, image2 = (image.double() for image in images(1, 32, 40))
    direction = torch.randn_like(image1)

    def objective(step):
        return model(image1, image2 + step * direction, iters=1)[0].square().mean()

    image2.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(0.0), image2)
    with torch.no_grad():
        quotient = (objective(1e-5) - objective(-1e-5)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), quotient, rtol=1e-4, atol=0)


def test_coordinates_are_detached_between_steps():
    """As in RAFT: the last flow depends on the features of a step only through that step and the hidden state."""
    model = RAFT(small=True).eval()
    with torch.no_grad():
        for parameter in model.update_block.gru.convz.parameters():
            parameter.zero_()
        model.update_block.gru.convz.bias.fill_(-1e4)  # a constant hidden state leaves the coordinates as only path
    flow_init = torch.zeros(1, 2, 8, 9, requires_grad=True)
    first, second = model(*images(), iters=2, flow_init=flow_init, upsample=False)
    assert first.grad_fn is not None
    assert second.grad_fn is not None
    (gradient,) = torch.autograd.grad(second.sum(), flow_init, allow_unused=True)
    assert gradient is None


def test_training_moves_batch_norm_unless_frozen():
    model = RAFT().train()
    before = model.cnet.norm1.running_mean.clone()
    model.freeze_bn()
    with torch.no_grad():
        model(*images(), iters=1)
        assert torch.equal(model.cnet.norm1.running_mean, before)
        model.train()
        model(*images(), iters=1)
    assert not torch.equal(model.cnet.norm1.running_mean, before)


@torch.no_grad()
def test_test_mode_upsamples_once(model, monkeypatch):
    calls = []
    upsample = model.flow
    monkeypatch.setattr(model, "flow", lambda *args: calls.append(1) or upsample(*args))
    model(*images(), iters=4, test_mode=True)
    assert len(calls) == 1


@torch.no_grad()
def test_mixed_precision_stays_near_float32(model):
    """bfloat16 keeps 8 bits: after three steps the flow agrees to a few percent, and is float32."""
    pair = images(1, 128, 128)
    expected = model(*pair, iters=3, upsample=False)[-1]
    model.mixed_precision = True
    actual = model(*pair, iters=3, upsample=False)[-1]
    assert actual.dtype == torch.float32
    assert not torch.equal(actual, expected), "autocast did not run"
    assert (actual - expected).norm() / expected.norm() < 0.05
    _, _, net, _ = model.features(*model.frames(*pair))
    assert net.dtype == torch.bfloat16
    fmap1, *_ = model.features(*model.frames(*pair))
    assert fmap1.dtype == torch.float32


@torch.no_grad()
def test_autocast_around_the_call_is_mixed_precision(model):
    pair = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outside = model(*pair, iters=2)[-1]
    model.mixed_precision = True
    assert torch.equal(model(*pair, iters=2)[-1], outside)


@torch.no_grad()
def test_weights_in_bfloat16_run(model):
    pair = images(1, 128, 128)
    expected = model(*pair, iters=2, upsample=False)[-1]
    actual = copy.deepcopy(model).bfloat16()(*pair, iters=2, upsample=False)[-1]
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() / expected.norm() < 0.1


@torch.no_grad()
def test_forward_is_one_graph():
    model, pair = RAFT(small=True).eval(), images()
    traced = torch.compile(model, fullgraph=True, backend="eager")
    actual, expected = traced(*pair, iters=2, test_mode=True), model(*pair, iters=2, test_mode=True)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_alternate_corr_is_a_word_for_memory():
    assert RAFT(small=True, alternate_corr=True).memory == "on_the_fly"
    assert RAFT(small=True, alternate_corr=False).memory == "volume"
    with pytest.raises(ValueError, match="not both"):
        RAFT(small=True, alternate_corr=True, memory="volume")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corr_levels": 2.0}, "corr_levels must be an integer >= 1, got 2.0"),
        ({"corr_levels": 0}, "corr_levels must be an integer >= 1, got 0"),
        ({"corr_radius": "3"}, "corr_radius must be an integer >= 0, got '3'"),
    ],
)
def test_levels_and_radius_are_whole_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        RAFT(small=True, **options)


def test_levels_and_radius():
    model = RAFT(small=True, corr_levels=2, corr_radius=2).eval()
    assert model.update_block.encoder.convc1.in_channels == 2 * 25
    with torch.no_grad():
        assert model(*images(), iters=1)[0].isfinite().all()


_GOOD = torch.full((1, 3, 64, 64), 100, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.rand(1, 3, 64, 64), ValueError, r"image2 is a float image whose maximum is 0\.\d+.*multiply by 255"),
        (torch.zeros(1, 3, 64, 64), ValueError, "maximum is 0.*uint8 if the frame really is black"),
        (_GOOD.float().index_fill(3, torch.tensor([5]), torch.nan), ValueError, "not finite"),
        (_GOOD[:, :, :, :60], ValueError, r"image1 is \[1, 3, 64, 64\] but image2 is \[1, 3, 64, 60\]"),
        (_GOOD.expand(2, -1, -1, -1), ValueError, r"image2 is \[2, 3, 64, 64\]"),
        (_GOOD[0], ValueError, r"image2 must be RGB \[B, 3, H, W\], got \[3, 64, 64\]"),
        (_GOOD[:, :1], ValueError, r"image2 must be RGB .* got \[1, 1, 64, 64\]"),
        (_GOOD.long(), TypeError, r"image2 must be uint8 or floating in \[0, 255\], got torch.int64"),
        (_GOOD.numpy(), TypeError, "image2 must be a tensor .* got ndarray"),
    ],
)
def test_bad_images(bad, error, message):
    with pytest.raises(error, match=message):
        RAFT(small=True)(_GOOD, bad)


@pytest.mark.parametrize(("height", "width"), [(60, 64), (64, 60), (8, 8)])
def test_sizes_that_need_padding_name_the_padder(height, width):
    image = _GOOD[:, :, :height, :width]
    with pytest.raises(ValueError, match=rf"{height} x {width}.*InputPadder"):
        RAFT(small=True)(image, image)


def test_bad_arguments():
    model = RAFT(small=True)
    with pytest.raises(ValueError, match=r"the batch is empty, image1 is \[0, 3, 64, 64\]"):
        model(_GOOD[:0], _GOOD[:0])
    for iters in (0, 1.5):
        with pytest.raises(ValueError, match=f"iters must be an integer >= 1, got {iters}"):
            model(_GOOD, _GOOD, iters=iters)
    with pytest.raises(ValueError, match=r"flow_init must be \[1, 2, 8, 8\].*got \[1, 2, 64, 64\]"):
        model(_GOOD, _GOOD, flow_init=torch.zeros(1, 2, 64, 64))
