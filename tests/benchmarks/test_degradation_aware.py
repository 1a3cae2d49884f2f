"""The experiment: a fair comparison, a verdict that follows the criterion, work that can be stopped."""

import json
import types

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from accelerate.state import AcceleratorState

from benchmarks.degradation_aware import FAILURE, __main__, plan, report, work
from daflow_ext.evaluate.predictors import RaftPredictor
from daflow_ext.flow.metrics import METRICS, Tally
from daflow_ext.models import RAFT
from daflow_ext.train import lift
from daflow_ext.train.config import to_dict
from daflow_ext.train.data import TrainingClips, open_source

QUICK = plan.Plan(**__main__.QUICK, quick=True)
SIZES = plan.Plan(steps=10, seeds=2, clips=3, zero_shot_clips=1, crop=(48, 64), textures=("procedural",), workers=0)


@pytest.fixture(autouse=True)
def forget_precision():
    AcceleratorState._reset_state()  # another test's bf16 would hold for the whole process


def run_of(variant, seed, folder, steps=None):
    return plan.flow_run(variant, seed, SIZES, folder, steps)


def test_all_variants_of_a_seed_train_on_the_same_clips(tmp_path):
    runs = {"v2+": run_of("v2+", 1, tmp_path, steps=17)}
    runs |= {variant: run_of(variant, 1, tmp_path) for variant in ("v2", "v3", "v4", "v5")}
    samples = []
    for run in runs.values():
        data = run.config.data
        samples.append(TrainingClips(open_source(data), data, run.config.train.seed)[5])
    assert all(torch.equal(one[key], samples[0][key]) for one in samples for key in samples[0])
    settings = {name: to_dict(run.config) for name, run in runs.items()}
    assert settings["v2+"]["train"].pop("steps") == 17
    assert settings["v2"]["train"].pop("steps") == 10
    assert settings["v2+"] == settings["v2"]
    for section in ("data", "loss"):
        assert all(one[section] == settings["v2"][section] for one in settings.values())
    assert len({json.dumps(settings[name]["model"]) for name in ("v2", "v3", "v4", "v5")}) == 4
    other = run_of("v3", 0, tmp_path).config
    assert not torch.equal(TrainingClips(open_source(other.data), other.data, 0)[5]["hq"], samples[0]["hq"])


def test_configurations_that_drift_apart_are_refused(tmp_path, monkeypatch):
    read = plan.read_config

    def drifted(cls, name, overrides):
        return read(cls, name, [*overrides, *(["loss.gamma=0.7"] if name == "raft-tiny-lq" else [])])

    monkeypatch.setattr(plan, "read_config", drifted)
    run_of("v2", 0, tmp_path)
    with pytest.raises(ValueError, match="differ in loss"):
        run_of("v3", 0, tmp_path)


def test_held_out_clips_are_of_the_test_split_and_the_same_at_every_level():
    clean, bad = (work.held_out(SIZES, level) for level in ("clean", "level4"))
    assert clean.split == bad.split == "test"
    assert len(clean) == SIZES.clips
    assert np.array_equal(clean[1].frames, bad[1].frames)
    assert clean[1].lq is None
    assert not np.array_equal(bad[1].lq, bad[1].frames)
    assert "occluded" in bad[1].masks


# ---- the verdict ----------------------------------------------------------------------------------------------------


def stored(folder, errors):
    """Scores where ``errors(variant, seed, level, clip)`` gives the EPE of every pixel."""
    records = work.open_scores(SIZES, folder)
    items = [f"clip{number}" for number in range(SIZES.clips)]
    for variant in plan.VARIANTS:
        for seed in range(SIZES.seeds if variant in plan.SEEDED else 1):
            for level in plan.LEVELS:
                for number, item in enumerate(items):
                    epe = errors(variant, seed, level, number)
                    strata = {
                        name: Tally(count, dict.fromkeys(METRICS, epe * count)).as_list()
                        for name, count in (("all", 100), ("occluded", 20), ("non_occluded", 80))
                    }
                    name = plan.model_name(variant, seed)
                    record = {"model": name, "level": level, "item": item, "sequence": item, "strata": strata}
                    records.records[name, level, item] = record | {"seconds": 0.1}
    return records, items


ERRORS = {"v1": 5.0, "v2": 3.0, "v2+": 2.5, "v3": 2.0, "v4": 2.6, "v5": 2.1, "v6": 4.0}


def plain(variant, seed, level, number):
    """Clean input is better; clips and seeds differ, for all variants alike."""
    return ERRORS[variant] + 0.5 * number + 0.2 * seed * (variant in plan.SEEDED) - (level == "clean")


def test_success_needs_a_gain_over_all_three_baselines(tmp_path):
    records, items = stored(tmp_path, plain)
    differences = report.compare(SIZES, records, items)
    by = {one["reference"]: one for one in differences}
    assert by["v2+"]["epe_difference"] == pytest.approx(-0.5)
    assert by["v2+"]["interval"] == pytest.approx((-0.5, -0.5))
    assert by["v2"]["per_seed"] == pytest.approx([-1.0, -1.0])
    assert by["v1"]["per_seed"] == pytest.approx([-3.0, -2.8])
    assert report.verdict(differences) is True
    assert report.sentence(SIZES, True).startswith("Success")


@pytest.mark.parametrize("baseline", plan.BASELINES)
def test_a_gain_that_may_be_chance_is_none(tmp_path, baseline):
    def errors(variant, seed, level, number):
        worse = 3.0 if (variant, number) == (baseline, 0) else 0.0  # one clip decides, and against the others
        return 2.0 + worse if variant == baseline else plain(variant, seed, level, number) - 0.5 * number

    records, items = stored(tmp_path, errors)
    differences = report.compare(SIZES, records, items)
    (one,) = [one for one in differences if one["reference"] == baseline]
    assert one["epe_difference"] == pytest.approx(-1.0 + 0.1)
    assert one["interval"][1] >= 0
    assert report.verdict(differences) is False
    assert FAILURE in report.sentence(SIZES, False)


def test_nothing_is_decided_before_all_is_scored(tmp_path):
    records, items = stored(tmp_path, plain)
    del records.records["v4-seed1", "level5", items[2]]
    differences = report.compare(SIZES, records, items)
    assert "v4" not in {one["reference"] for one in differences}
    assert report.verdict(differences) is None
    assert report.sentence(SIZES, None).startswith("Unfinished")
    rows = report.table_rows(SIZES, records, items)
    assert not any(one["variant"] == "v4" and one["level"] in ("level5", "degraded") for one in rows)


def test_table_is_the_mean_over_seeds_and_degraded_levels(tmp_path):
    def errors(variant, seed, level, number):
        return plain(variant, seed, level, number) + (6.0 if level == "level2" else 0.0)

    records, items = stored(tmp_path, errors)
    rows = {(one["variant"], one["level"]): one for one in report.table_rows(SIZES, records, items)}
    assert len(rows) == len(plan.VARIANTS) * (len(plan.LEVELS) + 1)
    assert rows["v3", "clean"]["EPE"] == pytest.approx(2.0 + 0.5 + 0.1 - 1.0)
    assert rows["v3", "degraded"]["EPE"] == pytest.approx(2.0 + 0.5 + 0.1 + 1.0)
    assert rows["v3", "level2"]["EPE occluded"] == pytest.approx(2.6 + 6.0)
    assert (rows["v1", "clean"]["seeds"], rows["v3", "clean"]["seeds"]) == (1, 2)


# ---- the work -------------------------------------------------------------------------------------------------------


def test_the_random_transformer_sees_the_frames():
    stage, _ = lift.build(plan.random_run(QUICK).config)

    def queries(frames):
        noise = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 1, "tap_layers": (4,), "first_step_only": True, "generator": noise}
        return next(stage.restoration.steps(frames, **options)).queries[4]

    clips = torch.randint(0, 256, (2, 1, 3, 3, 48, 64), dtype=torch.uint8)
    assert torch.equal(*map(queries, clips))  # as training starts, only noise arrives
    work.draw_control(stage.transformer)
    first, second = map(queries, clips)
    assert (first - second).abs().mean() > 0.01 * first.abs().mean()


def test_v6_gives_raft_the_restored_frames():
    torch.manual_seed(0)
    raft = RaftPredictor("v1", RAFT(small=True), "weights", iters=2)
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    seen = {}

    def restore(clip, **options):
        seen["clip"], seen["noise"] = clip, options["generator"].initial_seed()
        return (clip.float() - 20.3).flip(-1)

    v6 = work.RestoredPredictor("v6", types.SimpleNamespace(restore=restore), raft, "model", 3)
    restored = np.round(np.clip(frames.astype(np.float32) - 20.3, 0, 255)).astype(np.uint8)[:, :, ::-1]
    assert torch.equal(v6(frames, 0), raft(restored, 0))
    assert torch.equal(v6(frames, 0, backward=True), raft(restored, 0, backward=True))
    assert np.array_equal(seen["clip"][0].permute(0, 2, 3, 1).numpy(), frames)
    assert seen["noise"] == 0
    assert v6.identity != raft.identity


class Moment(work.Budget):
    """Enough to begin, not enough for a second step."""

    def left(self):
        return 1e-9


def test_a_stopped_run_goes_on_and_a_finished_one_stays(tmp_path):
    said = []
    run = plan.transformer_runs(QUICK, tmp_path)[0]
    with pytest.raises(work.Stopped):
        work.train(run, tmp_path, work.Budget(0), said.append)
    assert not (tmp_path / run.name).exists()
    with pytest.raises(work.Stopped, match="dit-frame stopped at step 1 of 2"):
        work.train(run, tmp_path, Moment(None), said.append)
    times = report.training_times(tmp_path)
    assert (times["dit-frame"]["steps"], times["dit-frame"]["finished"]) == (1, False)
    for _ in range(2):
        work.train(plan.transformer_runs(QUICK, tmp_path)[0], tmp_path, work.Budget(None), said.append)
    assert len(said) == 2
    assert report.training_times(tmp_path)["dit-frame"]["finished"]
    run.config.train.lr *= 2
    with pytest.raises(ValueError, match=r"another train\.lr; choose another --out"):
        work.train(run, tmp_path, work.Budget(None), said.append)


def test_results_are_not_made_from_a_quick_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--out", str(tmp_path / "out"), "--quick", "--save"])
    assert "--save is for results" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_everything_runs_in_stretches(tmp_path, capsys):
    command = ["--out", str(tmp_path), "--quick", "--threads", "1"]
    assert __main__.main([*command, "--max-minutes", "0.05"]) == 0
    assert "the same command goes on" in capsys.readouterr().out
    assert __main__.main(command) == 0
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["success"] is None
    assert len(content["rows"]) == len(plan.VARIANTS) * (len(plan.LEVELS) + 1)
    assert set(content["zero_shot"]) == set(plan.TRANSFORMERS)
    assert np.array(content["zero_shot"]["dit-random"]["epe"]).shape == (2, 8)
    assert {one["reference"] for one in content["differences"]} == set(plan.VARIANTS) - {"v3"}
    steps = {name: one["steps"] for name, one in content["seconds"].items()}
    assert steps["v2+-seed0"] >= steps["v2-seed0"] == steps["v3-seed0"] == 2
    page = (tmp_path / "report.md").read_text()
    assert "--quick" in page
    assert content["environment"]["date"] in page
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    assert __main__.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")} == before
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["rows"] == content["rows"]
