"""Scoring a data set: the numbers, interruption, damaged items, several models and levels."""

import json
import math

import numpy as np
import pytest
import torch

from daflow_ext import datasets
from daflow_ext.datasets import BadItemError
from daflow_ext.evaluate import (
    RecordFile,
    ZeroPredictor,
    csv_table,
    differences,
    robustness_means,
    screen_table,
    summarize,
    validate,
)
from daflow_ext.flow import metrics


class Constant:
    """The same vector everywhere; stops after ``calls`` calls."""

    clip = 2

    def __init__(self, x, y=0.0, name="constant", calls=math.inf):
        self.x, self.y, self.name, self.left = x, y, name, calls
        self.identity = f"{x},{y}"
        self.asked = []

    def __call__(self, frames, pair, *, backward=False, pad_mode="sintel"):
        if self.left <= 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked.append(int(frames[pair, 0, 0, 0]))
        sign = -1 if backward else 1
        flow = torch.tensor([self.x, self.y])[:, None, None].expand(2, *frames.shape[1:3])
        return sign * flow.clone()


class Brightness:
    """Flow as long as the frame is bright: it tells what the model saw."""

    name, identity, clip = "brightness", "", 2

    def __call__(self, frames, pair, **_):
        return torch.full((2, *frames.shape[1:3]), float(frames[pair, 0, 0, 0]))


def darker(frames, seed):
    return frames - 1


def run(tmp_path, dataset, predictors, levels=("clean",), **options):
    records = RecordFile(tmp_path / "records.jsonl", {"dataset": dataset.name})
    validate(lambda level: dataset, levels, predictors, records, workers=0, **options)
    items = [dataset.item_name(index) for index in range(len(dataset))]
    return records, summarize(records, [one.name for one in predictors], levels, items, dataset.protocol)


def test_zero_flow_scores_the_length_of_the_truth(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path))
    _, (row,) = run(tmp_path, dataset, [ZeroPredictor()])
    lengths = [math.hypot(number, offset) for offset in (0, 1) for number in (1, 2, 3)]
    assert row.items == 6
    assert row.sequences == 2
    assert row.scores["all"]["epe_per_image"] == pytest.approx(np.mean(lengths), rel=1e-6)
    # exactly 1 pixel counts as an outlier under Sintel's rule (error >= 1)
    assert row.scores["all"]["outlier_1px_per_image"] == pytest.approx(100)
    assert row.scores["all"]["outlier_3px_per_image"] == pytest.approx(100 * 2 / 6)
    means = [np.mean(lengths[:3]), np.mean(lengths[3:])]
    assert row.intervals["epe"] == pytest.approx((min(means), max(means)), rel=1e-6)
    occluded = [number * length for number, length in zip((1, 2, 3) * 2, lengths, strict=True)]
    assert row.scores["occluded"]["epe_per_pixel"] == pytest.approx(sum(occluded) / 12, rel=1e-6)
    assert row.scores["s0-10"] == row.scores["all"]


def test_kitti_publishes_image_means_of_epe_and_pixel_means_of_fl(trees, tmp_path):
    root = trees.kitti(tmp_path, scenes=2)
    valid = np.zeros((trees.HEIGHT, trees.WIDTH), bool)
    valid[:1] = True
    trees.kitti_png(root / "training/flow_occ/000001_10.png", trees.vectors(100, 0), valid)
    _, (row,) = run(tmp_path, datasets.Kitti2015(root), [ZeroPredictor()])
    first = math.hypot(0.5, 1.25)
    pixels = [12 * trees.WIDTH, trees.WIDTH]
    assert row.scores["all"]["epe_per_image"] == pytest.approx((first + 100) / 2, rel=1e-6)
    assert row.scores["all"]["fl_all_per_pixel"] == pytest.approx(100 * pixels[1] / sum(pixels), rel=1e-6)
    line = screen_table([row], "kitti").splitlines()[1].split()
    assert line[3] == f"{(first + 100) / 2:.3f}"
    assert f"{100 / 13:.2f}" in line


def test_spring_min4_takes_the_best_sample(trees, tmp_path):
    dataset = datasets.Spring(trees.spring(tmp_path), gt="min4", cameras=("left",), directions=("FW",))
    _, (row,) = run(tmp_path, dataset, [Constant(1.75)])
    # truth n + {0, .25, .5, .75}: best errors 0 for n = 1 and .25 for n = 2
    assert row.scores["all"]["epe_per_pixel"] == pytest.approx(0.125, abs=1e-6)
    subsampled = datasets.Spring(tmp_path, cameras=("left",), directions=("FW",))
    _, (row,) = run(tmp_path / "train", subsampled, [Constant(1.75)])
    assert row.scores["all"]["epe_per_image"] == pytest.approx((0.75 + 0.25) / 2, abs=1e-6)
    pixels = trees.HEIGHT * trees.WIDTH - 1
    records = json.loads((tmp_path / "records.jsonl").read_text().splitlines()[1])
    assert records["strata"]["all"][0] == pixels


def test_an_interrupted_run_goes_on_where_it_stopped(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, dataset, [Constant(1.0, calls=4)])
    path = tmp_path / "records.jsonl"
    assert len(path.read_text().splitlines()) == 1 + 4
    with path.open("a") as file:
        file.write('{"model": "constant", "level": "cl')  # a crash in the middle of a line
    again = Constant(1.0)
    steps = []
    _, (resumed,) = run(tmp_path, dataset, [again], step=steps.append)
    assert again.asked == [52, 53]
    assert len(steps) == 6
    (tmp_path / "fresh").mkdir()
    _, (whole,) = run(tmp_path / "fresh", dataset, [Constant(1.0)])
    assert {**resumed.to_dict(), "seconds_per_pair": 0} == {**whole.to_dict(), "seconds_per_pair": 0}
    nothing = Constant(1.0)
    run(tmp_path, dataset, [nothing])
    assert nothing.asked == []


def test_results_of_other_settings_or_models_are_not_mixed(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path))
    run(tmp_path, dataset, [Constant(1.0)])
    with pytest.raises(ValueError, match=r"results of another 'constant' \(1\.0,0\.0, now 2\.0,0\.0\)"):
        run(tmp_path, dataset, [Constant(2.0)])
    with pytest.raises(ValueError, match="was made with dataset = 'sintel', this run has 'kitti-2015'"):
        RecordFile(tmp_path / "records.jsonl", {"dataset": "kitti-2015"})
    (tmp_path / "other.jsonl").write_text("hello\n")
    with pytest.raises(ValueError, match=r"other\.jsonl is no record of a validation"):
        RecordFile(tmp_path / "other.jsonl", {})


def test_records_without_an_identity_are_kept(tmp_path):
    record = {"model": "lifted", "level": "clean", "item": "clip0", "table": [1.0]}
    RecordFile(tmp_path / "table.jsonl", {}).add(record)
    again = RecordFile(tmp_path / "table.jsonl", {})
    assert again.records == {("lifted", "clean", "clip0"): record}
    with pytest.raises(ValueError, match=r"another 'lifted' \(None, now zero\)"):
        again.done("lifted", "zero", "clean")


def test_a_bad_item_stops_the_run_or_is_counted_and_named(trees, tmp_path):
    root = trees.sintel(tmp_path)
    broken = root / "training/flow/alley_1/frame_0002.flo"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    dataset = datasets.Sintel(root)
    with pytest.raises(BadItemError, match=r"alley_1/frame_0002: .*frame_0002\.flo is truncated"):
        run(tmp_path, dataset, [ZeroPredictor()])
    _, (row,) = run(tmp_path, dataset, [ZeroPredictor()], skip_bad=True)
    assert row.items == 5
    assert list(row.bad) == ["alley_1/frame_0002"]
    assert "truncated" in row.bad["alley_1/frame_0002"]
    assert screen_table([row], "sintel").splitlines()[0].endswith("bad")
    assert row.scores["all"]["epe_per_image"] == pytest.approx(
        np.mean([1, 3] + [math.hypot(n, 1) for n in (1, 2, 3)]), rel=1e-6
    )
    broken.write_bytes(whole)  # repaired: scored by the next run
    _, (row,) = run(tmp_path, dataset, [ZeroPredictor()], skip_bad=True)
    assert (row.items, row.bad) == (6, {})


def test_a_prediction_that_is_not_finite_is_a_bad_item(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path))
    with pytest.raises(BadItemError, match="alley_1/frame_0001: the flow predicted by constant is not finite"):
        run(tmp_path, dataset, [Constant(math.nan)])


def test_several_models_and_levels_in_one_table(trees, tmp_path):
    root = trees.sintel(tmp_path)
    levels = {"clean": None, "dark": darker}
    predictors = [ZeroPredictor(), Constant(2.0)]
    records = RecordFile(tmp_path / "r.jsonl", {})
    validate(lambda level: datasets.Sintel(root, degrade=levels[level]), list(levels), predictors, records, workers=0)
    assert predictors[1].asked == [1, 2, 3, 51, 52, 53, 0, 1, 2, 50, 51, 52], "degraded frames are what the model sees"
    items = [f"{scene}/frame_000{n}" for scene in ("alley_1", "market_2") for n in (1, 2, 3)]
    arguments = ["zero", "constant"], list(levels), items, "sintel"
    rows = summarize(records, *arguments)
    assert [(row.level, row.model) for row in rows] == [
        ("clean", "zero"), ("clean", "constant"), ("dark", "zero"), ("dark", "constant"),
    ]  # fmt: skip
    found = differences(records, *arguments)
    assert [one["level"] for one in found] == ["clean", "dark"]
    expected = rows[1].scores["all"]["epe_per_image"] - rows[0].scores["all"]["epe_per_image"]
    assert found[0]["epe_difference"] == pytest.approx(expected)
    assert found[0]["interval"][0] <= expected <= found[0]["interval"][1]
    lines = csv_table(rows).splitlines()
    header = lines[0].split(",")
    cells = dict(zip(header, lines[1].split(","), strict=True))
    assert cells["stratum"] == "all"
    assert float(cells["epe_per_pixel"]) == rows[0].scores["all"]["epe_per_pixel"]
    assert len(lines) == 1 + 4 * len(rows[0].scores)


def test_robustness_compares_with_the_prediction_on_clean_frames(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path), degrade=darker)
    _, (row,) = run(tmp_path, dataset, [Brightness()], levels=("dark",), compare_clean=True)
    assert row.extra["robustness_epe"] == pytest.approx(math.sqrt(2), rel=1e-6)
    assert row.extra["robustness_1px"] == 100
    assert "R_EPE" in screen_table([row], "sintel")
    (tmp_path / "zero").mkdir()
    _, (row,) = run(tmp_path / "zero", dataset, [ZeroPredictor()], levels=("dark",), compare_clean=True)
    assert row.extra["robustness_epe"] == 0


def test_robustness_is_averaged_over_levels(trees, tmp_path):
    root = trees.sintel(tmp_path)
    levels = {"clean": None, "one": lambda frames, seed: frames + 1, "four": lambda frames, seed: frames + 4}
    records = RecordFile(tmp_path / "r.jsonl", {})
    opened = {level: datasets.Sintel(root, degrade=degrade) for level, degrade in levels.items()}
    validate(opened.get, list(levels), [Brightness()], records, workers=0, compare_clean=True)
    items = [opened["clean"].item_name(index) for index in range(6)]
    means = robustness_means(summarize(records, ["brightness"], list(levels), items, "sintel"))
    assert means["brightness"]["levels"] == 2
    assert means["brightness"]["robustness_epe"] == pytest.approx(2.5 * math.sqrt(2), rel=1e-6)
    assert means["brightness"]["robustness_1px"] == 100


def test_video_without_truth_is_scored_by_consistency(trees, tmp_path):
    for number in range(3):
        trees.picture(tmp_path / f"clip/{number}.png", 40 * number)
    dataset = datasets.Folder(tmp_path)
    _, (row,) = run(tmp_path, dataset, [Constant(0.0)])
    assert row.scores == {}
    assert row.extra["forward_backward_px"] == 0
    assert row.extra["warping_error"] == pytest.approx((40 / 255) ** 2, rel=1e-5)
    header, line = (text.split() for text in screen_table([row], "dense").splitlines())
    assert header[:3] == ["model", "level", "items"]
    assert line[-1] == f"{1e3 * (40 / 255) ** 2:.3f}"


def test_workers_give_the_same_records(trees, tmp_path):
    root = trees.sintel(tmp_path)
    (root / "training/clean/alley_1/frame_0001.png").unlink()
    contents = []
    for workers in (0, 2):
        dataset = datasets.Sintel(root, degrade=darker, lq_window="sequence")
        records = RecordFile(tmp_path / f"{workers}.jsonl", {})
        validate(lambda level, d=dataset: d, ["dark"], [ZeroPredictor()], records, workers=workers, skip_bad=True)
        contents.append([{**record, "seconds": 0} for record in records.records.values()])
    assert contents[0] == contents[1]
    assert ["error" in record for record in contents[0]] == [True, True, True, False, False, False]


def test_tallies_in_the_records_are_those_of_the_metrics(trees, tmp_path):
    dataset = datasets.Sintel(trees.sintel(tmp_path))
    records, _ = run(tmp_path, dataset, [Constant(1.5, 0.5)])
    clip = dataset[4]
    flow = torch.tensor([1.5, 0.5])[:, None, None].expand(2, trees.HEIGHT, trees.WIDTH)
    truth = torch.from_numpy(clip.flow[0]).permute(2, 0, 1)
    scores = metrics.Tally.from_list(
        records.records["constant", "clean", "market_2/frame_0002"]["strata"]["all"]
    ).mean()
    assert scores["epe"] == pytest.approx(metrics.epe(flow, truth).item())
    assert scores["wauc"] == pytest.approx(metrics.wauc(flow, truth).item())
    assert scores["fl_all"] == pytest.approx(metrics.fl_all(flow, truth).item())
