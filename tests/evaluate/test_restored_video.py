"""The table of restored videos, against the metrics called on whole clips."""

import pytest
import torch

from daflow_ext.evaluate.restored_video import SCORES, score_table, score_videos
from daflow_ext.flow.metrics import lpips, occlusion_and_boundaries, psnr, ssim, warping_error
from daflow_ext.models.pair_flow import PairFlow


@pytest.fixture
def clean():
    """Five frames that move two pixels to the left, with their flow."""
    scene = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 24) * 255, (80, 96), mode="bicubic")[0]
    scene = scene.clamp(0, 255).byte()
    return torch.stack([scene[:, 4:76, 2 * t : 2 * t + 80] for t in range(5)])


def pairs(frames, x=-2.0):
    flow = torch.tensor([x, 0.0])[:, None, None].expand(2, *frames.shape[-2:]).contiguous()
    for index in range(len(frames) - 1):
        yield PairFlow(index, frames[index], frames[index + 1], flow, -flow, None, None, seconds=0.0)


def noisy(frames, amount):
    return (frames + amount * torch.randn(frames.shape)).clamp(0, 255).byte()


def test_scores_are_those_of_the_metrics_on_the_whole_clip(clean):
    pytest.importorskip("torchmetrics", reason="PSNR and SSIM are torchmetrics'; pip install torchmetrics")
    videos = {"input": noisy(clean, 20), "restored": noisy(clean, 5)}
    scores = score_videos(pairs(clean), videos)
    flow = torch.stack([pair.forward for pair in pairs(clean)])
    hidden = occlusion_and_boundaries(flow, -flow)
    for name, frames in videos.items():
        assert scores[name] == {
            "psnr": pytest.approx(psnr(frames, clean).item(), rel=1e-5),
            "ssim": pytest.approx(ssim(frames, clean).item(), rel=1e-5),
            "warping_error": pytest.approx(1e3 * warping_error(frames, flow, hidden).item(), rel=1e-6),
        }
    own = 1e3 * warping_error(clean, flow, hidden).item()  # not 0: the mask keeps pixels that leave the picture
    assert scores["truth"] == {"warping_error": pytest.approx(own, rel=1e-6)}
    assert scores["restored"]["psnr"] > scores["input"]["psnr"]
    assert scores["restored"]["warping_error"] < scores["input"]["warping_error"]
    lines = score_table(scores).splitlines()
    assert all(heading in lines[0] for heading in SCORES.values())
    assert lines[1].split() == [
        "input",
        f"{scores['input']['psnr']:.2f}",
        f"{scores['input']['ssim']:.4f}",
        "-",
        f"{scores['input']['warping_error']:.4f}",
    ]
    assert lines[3].split() == ["truth", "-", "-", "-", f"{own:.4f}"]


def test_lpips_from_a_file(clean, shared):
    pytest.importorskip("torchmetrics", reason="PSNR and SSIM are torchmetrics'; pip install torchmetrics")
    path = shared / "weights/lpips_alex_full.safetensors"
    video = noisy(clean, 20)
    scores = score_videos(pairs(clean), {"input": video}, lpips_weights=path)
    assert scores["input"]["lpips"] == pytest.approx(lpips(video, clean, weights=path).item(), rel=1e-4)


def test_videos_that_do_not_fit_are_refused(clean):
    pytest.importorskip("torchmetrics", reason="PSNR and SSIM are torchmetrics'; pip install torchmetrics")
    with pytest.raises(ValueError, match=r"short ends after 3 frame\(s\)"):
        score_videos(pairs(clean), {"short": clean[:3]})
    with pytest.raises(ValueError, match="long has more than the 4 frames"):
        score_videos(pairs(clean[:4]), {"long": clean})
    with pytest.raises(ValueError, match="frame 0 of small is 60x72, of the clean video 80x72"):
        score_videos(pairs(clean), {"small": clean[..., :60]})
    with pytest.raises(ValueError, match="no pair of frames"):
        score_videos([], {})
