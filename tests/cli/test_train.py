"""``daflow train``: both stages end to end on rendered scenes, and how it refuses."""

import json

import pytest

SMALL = (
    "data.options={textures: procedural}",
    "data.crop=[64, 64]",
    "train.batch=1",
    "train.workers=0",
    "train.steps=2",
    "validation.clips=1",
    "validation.levels=[level3]",
    "validation.iters=2",
    "validation.pictures=0",
)


def test_flow_trains_given_weights_and_goes_on(daflow, tiny_weights, tmp_path):
    command = ("train", "flow", "--config", "raft-tiny-lq", "-o", tmp_path / "run", "--init", tiny_weights)
    code, text, _ = daflow(*command, "--set", *SMALL, "loss.iters=2", "train.max_minutes=0")
    assert code == 0
    assert "stopped by train.max_minutes at step 1 of 2" in text
    code, text, _ = daflow(*command, "--set", *SMALL, "loss.iters=2")
    assert "going on after step 1" in text
    assert "finished at step 2 of 2" in text
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [one["step"] for one in lines if "loss" in one] == [1, 2]
    code, _, _ = daflow("convert", tmp_path / "run" / "model.safetensors", "-o", tmp_path / "raft.pth")
    assert code == 0


def test_lift_writes_a_restoration_model(daflow, tmp_path):
    pytest.importorskip("diffusers")
    code, _, error = daflow(
        "train", "lift", "--config", "daflow-tiny-lift", "-o", tmp_path / "run", "--set", *SMALL, "data.crop=[32, 32]"
    )
    assert code == 0, error
    assert (tmp_path / "run" / "model" / "transformer" / "config.json").exists()
    assert "lifted restoration transformer" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config", "nothing"], "no configuration 'nothing'; expected a YAML file or one of "),
        (["--config", "raft-tiny-lq", "--set", "train.stepz=3"], "unknown key train.stepz; did you mean train.steps?"),
        (["--config", "raft-tiny-lq", "--init", "missing.pth"], "missing.pth does not exist"),
        (["--config", "raft-tiny-lq", "--init", "a: #1, [2].pth"], "a: #1, [2].pth does not exist"),
        (["--config", "daflow-tiny-lift"], "unknown key model.control_conv_scale; did you mean model."),
    ],
)
def test_a_wrong_setting_is_one_sentence(daflow, tmp_path, arguments, sentence):
    code, _, error = daflow("train", "flow", "-o", tmp_path / "run", *arguments)
    assert code == 1
    assert sentence in error
    assert error.count("\n") == 1
