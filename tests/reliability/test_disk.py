"""A full disk and a read-only folder: one sentence, an exit code other than 0, and no half file."""

import json

import pytest

from daflow_ext import read_flow, read_image
from daflow_ext.cli import main
from tests.reliability import common

FULL, READ_ONLY = "No space left on device", "Read-only file system"


def commands(tmp_path, weights, out):
    """One run of every verb that writes, each into ``out``."""
    common.write_clip(tmp_path / "clip", 8)
    common.write_pairs(tmp_path / "data", 3)
    return {
        "infer": ("infer", tmp_path / "clip", "--weights", weights, "--iters", 1, "-o", out),
        "infer one file": (
            *("infer", tmp_path / "clip/0.png", tmp_path / "clip/1.png", "--weights", weights, "--iters", 1),
            *("-o", out.parent / "one.flo"),
        ),
        "validate": ("validate", "--dataset", "pairs", "--root", tmp_path / "data", "--model", "zero", "--workers", 0,
                     "-o", out),
        "degrade": ("degrade", tmp_path / "clip", "--level", 1, "-o", out),
        "convert": ("convert", weights, "-o", out.parent / "raft.safetensors"),
    }  # fmt: skip


def assert_files_are_whole(folder):
    """What has its final name can be read; nothing temporary is left."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert not path.name.startswith("."), path
        if path.suffix == ".flo":
            read_flow(path)
        elif path.suffix == ".png":
            read_image(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".jsonl", path


@pytest.mark.parametrize("verb", ["infer", "infer one file", "validate", "degrade", "convert"])
def test_full_disk(tmp_path, tiny_weights, capsys, verb):
    size = {"infer": "68k", "infer one file": "12k", "validate": "8k", "degrade": "24k", "convert": "1m"}[verb]
    with common.disk(tmp_path / "small", size):
        error = common.sentence(capsys, *commands(tmp_path, tiny_weights, tmp_path / "small" / "out")[verb])
        assert FULL in error
        assert_files_are_whole(tmp_path / "small")
        if verb == "infer":
            assert "the same command goes on from there" in error
            assert len(list((tmp_path / "small/out/flow").iterdir())) >= 1


@pytest.mark.parametrize("verb", ["infer", "infer one file", "validate", "degrade", "convert"])
def test_read_only_folder(tmp_path, tiny_weights, capsys, verb):
    with common.disk(tmp_path / "still", "1m") as make_read_only:
        make_read_only()
        error = common.sentence(capsys, *commands(tmp_path, tiny_weights, tmp_path / "still" / "out")[verb])
        assert READ_ONLY in error
        assert not list((tmp_path / "still").iterdir())


def test_a_full_disk_that_was_emptied_goes_on(tmp_path, tiny_weights, capsys):
    with common.disk(tmp_path / "small", "200k"):
        command = commands(tmp_path, tiny_weights, tmp_path / "small" / "out")["infer"]
        ballast = tmp_path / "small" / "ballast"
        ballast.write_bytes(bytes(144 * 1024))
        assert FULL in common.sentence(capsys, *command)
        begun = common.visible(tmp_path / "small/out/flow")
        assert 0 < len(begun) < 7
        ballast.unlink()
        for folder in (tmp_path / "small" / "out", tmp_path / "whole"):
            assert main([str(word) for word in (*command[:-1], folder)]) == 0
        assert common.visible(tmp_path / "small/out/flow") == common.visible(tmp_path / "whole/flow")
        assert begun.items() <= common.visible(tmp_path / "whole/flow").items()


@pytest.mark.slow
def test_full_disk_while_training(tmp_path, tiny_weights, capsys):
    pytest.importorskip("accelerate")
    settings = ("data.options={textures: procedural}", "data.crop=[64, 64]", "train.batch=1", "train.workers=0",
                "train.steps=1", "loss.iters=1", "validation.every=0")  # fmt: skip
    with common.disk(tmp_path / "small", "4m"):
        out = tmp_path / "small" / "run"
        error = common.sentence(
            capsys, "train", "flow", "--config", "raft-tiny-lq", "--init", tiny_weights, "-o", out, "--set", *settings
        )
        assert FULL in error
        assert not (out / "checkpoint.pt").exists()
        assert not (out / "model.safetensors").exists()
