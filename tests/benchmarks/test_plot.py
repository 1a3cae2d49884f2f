"""The picture of a file of records."""

import json

import pytest

from benchmarks import plot

COMMON = {"op": "corr_block", "cpu": "a machine", "date": "2026-01-02T03:04:05+00:00"}


@pytest.fixture
def records(tmp_path):
    lines = []
    for grid, scale in (([8, 16], 1.0), ([16, 32], 10.0), ([32, 64], 100.0)):
        lines.append({**COMMON, "grid": grid, "way": "on_the_fly", "ms": 2 * scale, "plain": {"ms": 9 * scale}})
        lines.append(
            {**COMMON, "grid": grid, "way": "on_the_fly", "layout": "channels_last", "peak_mib": scale,
             "plain_peak_mib": 40 * scale}
        )  # fmt: skip
        lines.append({**lines[-1], "layout": "contiguous_format", "peak_mib": 7e7})
    lines.append({**COMMON, "op": "another", "grid": [1, 1], "way": "on_the_fly", "ms": 1e9})
    path = tmp_path / "records.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_read_takes_what_it_draws(records):
    times, memory, sizes, machine = plot.read(records)
    assert times["on_the_fly"] == {64 * 128: 2.0, 64 * 512: 20.0, 64 * 2048: 200.0}
    assert times["plain"][64 * 128] == 9.0
    assert memory == {
        "on_the_fly": {64 * 128: 1.0, 64 * 512: 10.0, 64 * 2048: 100.0},
        "plain": {64 * 128: 40.0, 64 * 512: 400.0, 64 * 2048: 4000.0},
    }
    assert sizes[64 * 128] == "64x128"
    assert machine == "a machine, 2026-01-02"


def test_slower_and_larger_is_higher(records):
    picture = plot.draw(records)
    (width, height), (left, top, right, bottom) = plot.PANEL, plot.MARGIN
    for offset in (0, width):
        inside = picture[top + 40 : height - bottom, offset + left + 26 : offset + width - right]  # below the legend
        rows = {name: (inside == plot.COLORS[name]).all(-1).nonzero() for name in ("plain", "on_the_fly")}
        heights = {name: where[0].mean() for name, where in rows.items()}
        assert heights["plain"] < heights["on_the_fly"], "rows count from the top"
        for where in rows.values():
            assert where[1].max() - where[1].min() > 0.8 * inside.shape[1] - 60  # from the first size to the last


def test_a_file_without_anything_to_draw(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text(json.dumps({**COMMON, "op": "another"}) + "\n")
    with pytest.raises(ValueError, match="no times and memory of corr_block"):
        plot.read(path)
