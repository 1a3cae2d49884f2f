"""Beginning at the flow between frames of half the size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")

from daflow_ext import DAFlow, get_model
from daflow_ext.frames.degrade import degrade

HEIGHT, WIDTH, CHANNELS, LAYERS = 64, 80, 12, (1, 3)  # 4 x 5 tokens: an odd number halves, too
HEADS = {
    "small": True,
    "tap_layers": LAYERS,
    "token_channels": CHANNELS,
    "match_channels": 16,
    "context_channels": 10,
    "head_channels": 8,
    "tap_channels": None,
    "scales": (1, 2),
}


@pytest.fixture
def models() -> tuple[DAFlow, DAFlow]:
    """The same weights, with and without the coarse start."""
    coarse, plain = DAFlow(**HEADS, coarse_start=True).eval(), DAFlow(**HEADS).eval()
    plain.load_state_dict(coarse.state_dict())
    return coarse, plain


@pytest.fixture
def inputs() -> tuple:
    images = [torch.rand(2, 3, HEIGHT, WIDTH) * 255 for _ in range(2)]
    taps = [{layer: torch.randn(2, 20, CHANNELS) for layer in LAYERS} for _ in range(2)]
    return *images, *taps


def halved_image(image: torch.Tensor) -> torch.Tensor:
    """32 x 40, whose last column stands eight times more."""
    half = image.reshape(2, 3, HEIGHT // 2, 2, WIDTH // 2, 2).mean(dim=(3, 5))
    return torch.cat([half, half[..., -1:].expand(-1, -1, -1, 8)], dim=-1)


def halved_taps(taps: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    def halved(tokens: torch.Tensor) -> torch.Tensor:
        rows = [tokens.reshape(2, 4, 5, CHANNELS)[:, y : y + 2].mean(1) for y in (0, 2)]
        cells = [torch.stack([row[:, 0:2].mean(1), row[:, 2:4].mean(1), row[:, 4]], 1) for row in rows]
        return torch.cat(cells, dim=1)

    return {layer: halved(tokens) for layer, tokens in taps.items()}


@torch.no_grad()
def test_it_is_the_flow_of_half_the_size_with_half_the_iterations(models, inputs):
    coarse, plain = models
    image1, image2, queries, keys = inputs
    half = [halved_image(image1), halved_image(image2), halved_taps(queries), halved_taps(keys)]
    flow = plain(*half, iters=3, test_mode=True)[1][..., : WIDTH // 2]  # pixels of half the size
    start = 2 * F.interpolate(flow, size=(HEIGHT // 8, WIDTH // 8), mode="area") / 8
    expected = plain(*inputs, iters=7, flow_init=start, test_mode=True)
    found = coarse(*inputs, iters=7, test_mode=True)
    assert not torch.allclose(found[1], plain(*inputs, iters=7, test_mode=True)[1], atol=1e-2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_training_and_a_given_start_go_without(models, inputs):
    coarse, plain = models
    for options in ({"flow_init": torch.ones(2, 2, HEIGHT // 8, WIDTH // 8), "test_mode": True}, {"test_mode": False}):
        for one, other in zip(coarse(*inputs, iters=2, **options), plain(*inputs, iters=2, **options), strict=True):
            assert torch.equal(one, other)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_one_token_on_and_in_half_precision(models, dtype):
    taps = {layer: torch.randn(1, 1, CHANNELS, dtype=dtype) for layer in LAYERS}
    images = [torch.rand(1, 3, 16, 16) * 255 for _ in range(2)]
    flow = models[0].to(dtype)(*images, taps, taps, iters=1, test_mode=True)[1]
    assert flow.shape == (1, 2, 16, 16)
    assert flow.isfinite().all()


@pytest.mark.parametrize("level", ["level3", "level4"])
def test_the_shipped_model_reaches_far(level):
    """A degraded pattern that moves by a third of the frame is lost without it."""
    height, width, shift, cell = 192, 512, 160, 12
    size = height, width + shift
    pattern = F.interpolate(torch.rand(1, 3, *(side // cell for side in size)), size=size, mode="bicubic")[0]
    pattern = (pattern.clamp(0, 1) * 255).byte()
    frames = torch.stack([pattern[..., shift:], pattern[..., :width]])  # to the right
    bad = degrade(frames.permute(0, 2, 3, 1).numpy(), level, seed=0)
    frames = torch.from_numpy(np.asarray(bad)).permute(0, 3, 1, 2)
    pipe = get_model("daflow-tiny")

    def error() -> float:
        flow = pipe(frames[None], generator=torch.Generator().manual_seed(0)).flows[0, 0]
        return float((flow[..., : width - shift] - torch.tensor([shift, 0.0])[:, None, None]).norm(dim=0).mean())

    assert pipe.flow.config.coarse_start
    found = error()
    pipe.flow.register_to_config(coarse_start=False)
    assert found < 3 < 10 < error()
