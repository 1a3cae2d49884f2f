"""Zero-shot flow: exact on features made to match, and the table's arithmetic."""

import pytest
import torch

pytest.importorskip("diffusers", reason="the restoration transformer is built on diffusers; pip install diffusers")

from daflow_ext.evaluate.zero_shot import ZeroShotTable, analyze_clip, heat_map, zero_shot_flow
from daflow_ext.features.restoration import LiftedRestoration


def test_shifted_features_give_the_shift_in_pixels():
    height, width = 6, 9
    features = torch.nn.functional.normalize(torch.randn(height, width, 64), dim=-1)
    key = features.roll((1, 2), (0, 1))  # cell (x, y) is found at (x + 2, y + 1)
    flow = zero_shot_flow(
        features.reshape(1, -1, 64), key.reshape(1, -1, 64), (height, width), (96, 144), cell=16, temperature=0.01
    )
    assert flow.shape == (1, 2, 96, 144)
    inside = flow[0, :, 16:64, 16:96]
    assert (inside - torch.tensor([32.0, 16.0])[:, None, None]).abs().max() < 1e-2


def test_table_adds_up_and_ranks():
    first = ZeroShotTable((3, 5), (1000.0, 500.0), torch.tensor([[4.0, 2.0], [4.0, 6.0]]), 2)
    second = ZeroShotTable((3, 5), (1000.0, 500.0), torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 2)
    assert torch.equal((first + second).epe, torch.tensor([[1.0, 0.75], [1.0, 1.75]]))
    assert (first + second).best() == [3, 5]
    with pytest.raises(ValueError, match="tables differ"):
        first + ZeroShotTable((3,), (1000.0,), torch.zeros(1, 1), 1)


def test_analysis_of_a_clip_is_reproducible():
    restoration = LiftedRestoration.load("tiny")
    frames = (torch.rand(3, 3, 40, 72) * 255).byte()
    flow, valid = torch.ones(2, 2, 40, 72), torch.ones(2, 40, 72, dtype=torch.bool)
    valid[:, :8] = False
    flow[:, :, :8] = float("nan")  # unknown truth must not reach the error

    def run():
        return analyze_clip(
            restoration, frames, flow, valid, layers=(0, 3, 5), num_inference_steps=2, temperature=5.0,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    table = run()
    assert table.epe.shape == (2, 3)
    assert table.count == int(valid.sum())
    assert table.epe.isfinite().all()
    assert torch.equal(table.epe, run().epe)
    picture = heat_map(table)
    assert picture.dtype == torch.uint8
    assert picture.float().std() > 10
    with pytest.raises(ValueError, match="so flow must be"):
        analyze_clip(restoration, frames, flow[:1], valid, layers=(0,), num_inference_steps=1, temperature=1.0)


def test_model_folder_round_trip(tmp_path):
    tiny = LiftedRestoration.load("tiny")
    for name, parameter in tiny.transformer.named_parameters():
        assert "to_k_control" not in name or not parameter.any()
    tiny.save(tmp_path / "model")
    again = LiftedRestoration.load(tmp_path / "model")
    frames = (torch.rand(1, 2, 3, 32, 32) * 255).byte()
    first, second = (
        next(iter(r.steps(frames, num_inference_steps=1, generator=torch.Generator().manual_seed(1)))).latents
        for r in (tiny, again)
    )
    assert torch.equal(first, second)
    (tmp_path / "model/prompt/config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"is no restoration model: prompt/config.json is missing"):
        LiftedRestoration.load(tmp_path / "model")
