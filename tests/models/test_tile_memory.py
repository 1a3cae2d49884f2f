"""Tiles: what is computed in them is what would be without, and they keep the memory they promise."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")

from daflow_ext.features.restoration import LiftedRestoration
from daflow_ext.models import RAFT
from daflow_ext.models.chunks import ChunkEstimator, TileSizes
from daflow_ext.models.tile_memory import SMALLEST_TILE, Needs, choose_tiles


@pytest.fixture(scope="module")
def pipe(make_pipeline):
    return make_pipeline()


def estimator(pipe, size, tiles, **options):
    settings = {"num_inference_steps": 2, "feature_steps": (0,), "iters": 2, "bidirectional": True, **options}
    restoration = LiftedRestoration(pipe.vae, pipe.transformer, pipe.scheduler, pipe.prompt)
    generator = torch.Generator().manual_seed(0)
    return ChunkEstimator(restoration, pipe.flow, size, generator=generator, tiles=tiles, **settings)


class LocalNetwork(torch.nn.Module):
    """Stands for the flow network with something that looks at one cell of 16 pixels only, in all its inputs."""

    config = SimpleNamespace(tap_layers=(0, 2), features="query_key")

    def forward(self, image1, image2, queries, keys, flow_init=None, **options):
        grid = tuple(side // 16 for side in image1.shape[-2:])

        def cells(tap):
            return tap.unflatten(1, grid).movedim(-1, 1)[:, :2]  # [B, 2, h, w]

        values = torch.nn.functional.avg_pool2d((image1 - 2 * image2).float(), 16)[:, :2] / 100
        values = values + cells(queries[0]) + 2 * cells(keys[2])
        if flow_init is not None:
            values = values + torch.nn.functional.avg_pool2d(flow_init, 2)
        return None, values.repeat_interleave(16, 2).repeat_interleave(16, 3)


def test_flow_tiles_cut_every_input_at_the_same_place(pipe):
    size = (160, 224)
    frames = (torch.rand(1, 3, 3, *size) * 255).byte()
    starts = [torch.randn(1, 2, 20, 28) for _ in range(2)]
    flows = []
    for tile in (None, 64, 96):
        one = estimator(pipe, size, TileSizes(flow=tile))
        one.flow = LocalNetwork()
        assert len(one.flow_tiles) == {None: 1, 64: 3 * 5, 96: 2 * 3}[tile]
        latents = torch.cat([one.encode(frame) for frame in frames.unbind(1)], 1)
        chunk = one(frames, latents, 2, starts, starts)
        flows.append(torch.stack([chunk.forward, chunk.backward]))
    assert flows[0].std() > 0.5
    for tiled in flows[1:]:
        torch.testing.assert_close(tiled, flows[0], rtol=1e-5, atol=1e-4)


def test_a_pixel_encoder_does_not_see_tiles(pipe):
    size = (160, 224)
    frame = (torch.rand(1, 3, *size) * 255).byte()
    whole, tiled = (estimator(pipe, size, tiles).encode(frame) for tiles in (TileSizes(), TileSizes(transformer=96)))
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)


def test_tiled_flow_of_a_smooth_motion(make_pipeline, shared):
    """RAFT's own weights; the picture turns by a degree and grows by 2 %: the flow is up to 9 pixels long."""
    from daflow_ext import read_image

    raft = RAFT.from_pretrained(shared / "weights/raft-small.pth")
    pipe = make_pipeline(raft, correlation="sum")
    size = (288, 384)
    picture = read_image(shared / "data/middlebury/RubberWhale/frame10.png")[None, :, :288, :384].float()
    angle = torch.tensor(torch.pi / 180)
    turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()]).reshape(2, 2) / 1.02
    turn = turn * torch.tensor([[1, size[0] / size[1]], [size[1] / size[0], 1]])  # in units of half sides
    turn = torch.cat([turn, torch.zeros(2, 1)], 1)[None]
    grid = torch.nn.functional.affine_grid(turn, (1, 3, *size), align_corners=False)
    moved = torch.nn.functional.grid_sample(picture, grid, padding_mode="reflection", align_corners=False)
    moved = moved.clamp(0, 255)
    frames = torch.stack([picture, moved, moved], 1)
    flows = []
    for tiles in (TileSizes(), TileSizes(transformer=160, flow=192)):
        one = estimator(pipe, size, tiles, iters=12, bidirectional=False)
        latents = torch.cat([one.encode(frame) for frame in frames.unbind(1)], 1)
        flows.append(one(frames, latents, 1).forward[0, 0])
    assert flows[0].norm(dim=0).max() > 4
    difference = (flows[1] - flows[0]).norm(dim=0)[16:-16, 16:-16]
    assert difference.mean() < 0.15
    assert difference.quantile(0.95) < 0.5


# ---- budgets --------------------------------------------------------------------------------------------------------


def test_a_smaller_budget_gives_smaller_tiles(pipe):
    size, iters = (720, 1280), 20
    needs, pixels = Needs.of(pipe, iters), 720 * 1280
    assert choose_tiles(pipe, size, None, iters=iters) == TileSizes()
    assert choose_tiles(pipe, size, 2**34, iters=iters) == TileSizes()
    before = None
    for share in (2.5, 1.8, 1.4, 1.15):
        budget = int(share * pixels * (needs.frame + needs.blend))
        tiles = choose_tiles(pipe, size, budget, iters=iters)
        for tile, per_pixel, rest in (
            (tiles.transformer, needs.transformer, needs.frame + needs.blend),
            (tiles.flow, needs.flow, needs.frame),
        ):
            if tile is None:
                assert pixels * (per_pixel + needs.frame) <= budget
                continue
            assert tile % 16 == 0
            assert tile >= SMALLEST_TILE
            area = min(tile, size[0]) * min(tile, size[1])
            assert area * per_pixel + pixels * rest <= budget
        if before is not None:
            assert (tiles.flow or 9999) <= (before.flow or 9999)
        before = tiles
    assert before.flow < 720
    for nonsense in ("4G", 0, 1.5):
        with pytest.raises(
            ValueError, match=rf"memory_budget must be a positive whole number of bytes, got {nonsense!r}"
        ):
            choose_tiles(pipe, (1280, 720), nonsense, iters=2)
    with pytest.raises(ValueError, match=r"memory_budget=1000000 is too small for frames of 1280x720: \d+ bytes"):
        choose_tiles(pipe, size, 1_000_000, iters=iters)
    with pytest.raises(ValueError, match="is the least") as refusal:
        choose_tiles(pipe, size, int(pixels * needs.frame), iters=iters)
    least = int(str(refusal.value).split(": ")[1].split()[0])
    assert choose_tiles(pipe, size, least, iters=iters).transformer == SMALLEST_TILE


def test_frames_beyond_the_transformers_positions_are_tiled(pipe):
    largest = pipe.transformer.config.pos_embed_max_size * 16
    assert choose_tiles(pipe, (64, largest), None, iters=1).transformer is None
    assert choose_tiles(pipe, (64, largest + 16), None, iters=1) == TileSizes(transformer=largest)


PEAK = """
import sys, torch
from daflow_ext import DAFlowPipeline

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

torch.set_num_threads(1)
pipe = DAFlowPipeline.from_pretrained(sys.argv[1])
pipe((torch.rand(2, 3, 64, 64) * 255).byte(), iters=1)
frames = (torch.rand(3, 3, 384, 512) * 255).byte()
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
pipe(frames, iters=1, bidirectional=True, memory_budget=int(sys.argv[2]) or None)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_frame_stays_under_the_budget(pipeline_folder):
    def peak(budget):
        command = [sys.executable, "-c", PEAK, pipeline_folder, str(budget)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    budget = 72 * 2**20
    assert peak(budget) < budget < peak(0)


def test_the_call_and_the_walk_obey_the_budget(pipe, monkeypatch):
    seen = []
    from daflow_ext.models import pipeline

    real = pipeline.choose_tiles
    monkeypatch.setattr(pipeline, "choose_tiles", lambda *a, **o: seen.append(real(*a, **o)) or seen[-1])
    frames = (torch.rand(2, 3, 160, 200) * 255).byte()
    budget = 17 * 2**20
    generator = torch.Generator().manual_seed(0)
    called = pipe(frames, iters=1, memory_budget=budget, generator=generator).flows[0, 0]
    (pair,) = pipe.video(iter(frames), iters=1, memory_budget=budget, generator=generator.manual_seed(0))
    assert seen[0] == seen[1] != TileSizes()
    assert torch.equal(pair.forward, called)
    assert not torch.equal(called, pipe(frames, iters=1, generator=generator.manual_seed(0)).flows[0, 0])
