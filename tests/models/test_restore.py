"""Restoring a video chunk by chunk: the pipeline's frames without guidance, the same however it was entered."""

import pytest
import torch

pytest.importorskip("diffusers", reason="the restoration loop is built on diffusers; pip install diffusers")

from daflow_ext.models.guidance import GuidanceSettings
from daflow_ext.models.pair_flow import PairFlow
from daflow_ext.models.restore import restore_video


@pytest.fixture(scope="module")
def pipe(make_pipeline):
    return make_pipeline()


def clip(count, size=(40, 50)):
    """A still scene under noise, uint8 [F, 3, H, W]."""
    scene = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 6) * 255, size, mode="bicubic")
    return (scene + 20 * torch.randn(count, 3, *size)).clamp(0, 255).byte()


def still(frames, start=0):
    """The flow of a still scene, pair by pair."""
    zero = torch.zeros(2, *frames.shape[-2:])
    for index in range(start, len(frames) - 1):
        yield PairFlow(index, frames[index], frames[index + 1], zero, zero, None, None, seconds=0.0)


def seed():
    return torch.Generator().manual_seed(5)


def restored(pipe, frames, **options):
    chunks = list(restore_video(frames, pipe.restoration(), generator=seed(), num_inference_steps=2, **options))
    assert [chunk.first for chunk in chunks] == [0, *range(3, len(frames), 2)]
    return torch.cat([chunk.frames for chunk in chunks]), chunks


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("color_fix", ["adain", "none"])
def test_without_guidance_frames_are_those_of_the_pipeline(pipe, count, color_fix):
    frames = clip(count)
    plain, _ = restored(pipe, frames, color_fix=color_fix)
    expected = pipe(
        frames,
        num_inference_steps=2,
        iters=1,
        generator=seed(),
        output_restored=True,
        color_fix=color_fix,
    ).restored[0]
    assert torch.equal(plain, expected)
    unguided, _ = restored(pipe, frames, pairs=still(frames), guidance=GuidanceSettings(scale=0), color_fix=color_fix)
    assert torch.equal(unguided, expected)


def test_a_run_entered_later_gives_the_same_frames(pipe):
    frames = clip(6)
    whole, chunks = restored(pipe, frames, pairs=still(frames))
    for start in (1, 2):
        rest = restore_video(
            frames,
            pipe.restoration(),
            pairs=still(frames, 2 * start),
            generator=seed(),
            num_inference_steps=2,
            start=start,
            anchor=chunks[start - 1].anchor,
        )
        rest = list(rest)
        assert rest[0].first == 2 * start + 1
        assert torch.equal(torch.cat([chunk.frames for chunk in rest]), whole[2 * start + 1 :])


def test_guidance_takes_flicker_from_a_still_scene_also_between_chunks(pipe):
    frames = clip(5)
    plain, _ = restored(pipe, frames, color_fix="none")
    guided, _ = restored(pipe, frames, pairs=still(frames), guidance=GuidanceSettings(iterations=5), color_fix="none")

    def flicker(images):
        return images.diff(dim=0).square().mean((1, 2, 3))  # per pair; chunks meet between the second and the third

    assert (flicker(guided) < 0.4 * flicker(plain)).all()


def test_three_frames_are_read_for_the_first_chunk(pipe):
    read = []

    def source():
        for index, frame in enumerate(clip(7)):
            read.append(index)
            yield frame

    chunks = restore_video(source(), pipe.restoration(), num_inference_steps=1)
    for last in (2, 4, 6):
        next(chunks)
        assert read == list(range(last + 1))


def test_errors_are_one_sentence(pipe):
    frames = clip(3)
    loop = pipe.restoration()
    with pytest.raises(ValueError, match="flow of pair 1 in both directions, no more came"):
        list(restore_video(frames, loop, pairs=list(still(frames))[:1], num_inference_steps=1))
    with pytest.raises(ValueError, match="flow of pair 0 in both directions, that of pair 1 came"):
        list(restore_video(frames, loop, pairs=still(frames, 1), num_inference_steps=1))
    with pytest.raises(ValueError, match=r"holds 1 frame\(s\), restoring it needs at least two"):
        list(restore_video(frames[:1], loop))
    with pytest.raises(ValueError, match="color_fix must be one of"):
        next(restore_video(frames, loop, color_fix="grey"))
    with pytest.raises(ValueError, match="start must be >= 0"):
        next(restore_video(frames, loop, start=-1))
    with pytest.raises(ValueError, match=r"frames of 2064x32 pixels exceed the 2048 per side .* --tile 512"):
        list(restore_video(torch.zeros(2, 3, 32, 2064, dtype=torch.uint8), loop, num_inference_steps=1))
    with pytest.raises(TypeError, match="frame 0 must be a tensor"):
        next(restore_video([frames[0].numpy()], loop))
