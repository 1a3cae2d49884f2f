import pytest
import yaml

from daflow_ext.train import FlowConfig, LiftConfig, config_names, read_config
from daflow_ext.train.config import changed_keys, from_dict, to_dict


def test_overrides_win_and_take_the_type_of_their_key():
    config = read_config(
        FlowConfig,
        "raft-tiny-lq",
        ["train.lr=1e-5", "train.steps=7", "data.crop=[64, 96]", "model.init=null", "train.max_minutes=30"],
    )
    assert (config.train.lr, config.train.steps, config.data.crop, config.model.init) == (1e-5, 7, (64, 96), None)
    assert config.train.max_minutes == 30.0
    assert config.data.source == "scenes"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.leanring_rate=1"], r"unknown key train\.leanring_rate; did you mean train\."),
        (["train.stps=1"], r"unknown key train\.stps; did you mean train\.steps\?"),
        (["trian.lr=1"], r"unknown key trian; did you mean train\?"),
        (["train.steps=many"], r"train\.steps must be int, got 'many'"),
        (["train.steps=1.5"], r"train\.steps must be int, got 1\.5"),
        (["train.lr=fast"], r"train\.lr must be float, got 'fast'"),
        (["data.crop=[64]"], r"data\.crop must have 2 values"),
        (["data.crop=[60, 64]"], r"multiples of 16"),
        (["train.steps=0"], r"train\.steps must be at least 1, got 0"),
        (["train.schedule=cosine"], r"train\.schedule must be one of onecycle, constant, got 'cosine'"),
        (["train.ema=1.0"], r"train\.ema must be a decay in \[0, 1\), got 1\.0"),
        (["model.name=raft"], r"model\.name must be one of raft-small, .* got 'raft'"),
        (["model.feature_step=10"], r"model\.feature_step must be 'random' or from 0 to 9, got 10"),
        (["train"], r"an override is section\.key=value, got 'train'"),
        (["train.lr.x=1"], r"lr is a value, not a section"),
        (["train.seed=-1"], r"train\.seed must be at least 0, got -1"),
        (["validation.clips=0"], r"validation\.clips must be at least 1, got 0"),
        (["data.degrade.choices={level1: -1}"], r"choices must be words with weights above 0, got \{'level1': -1\}"),
        (["data.degrade.choices={level1: much}"], r"choices must be words with weights above 0"),
        (["train.lr=[1"], r"override 'train.lr=\[1' is no YAML"),
        (["data.options.day=2026-02-30"], r"is no YAML of plain values: day"),
    ],
)
def test_wrong_settings_are_one_sentence(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_config(FlowConfig, "raft-tiny-lq", overrides)


def test_every_packaged_configuration_is_whole():
    assert {"raft-tiny-lq", "daflow-tiny-lift", "daflow-tiny-flow", "daflow-lift", "daflow-flow"} <= set(config_names())
    for name in config_names():
        read_config(LiftConfig if name.endswith("lift") else FlowConfig, name)


def test_a_name_that_is_no_file_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match="raft-tiny-lq"):
        read_config(FlowConfig, "nothing")


def test_a_configuration_survives_yaml_and_differs_only_where_losses_do():
    config = read_config(FlowConfig, "daflow-tiny-flow")
    stored = yaml.safe_load(yaml.safe_dump(to_dict(config)))
    assert from_dict(FlowConfig, stored) == config
    assert changed_keys(config, stored) == []
    config.train.workers, config.train.max_minutes = 5, 1.0
    assert changed_keys(config, stored) == []
    config.train.lr, config.data.degrade.clean = 1.0, 0.5
    del stored["model"]["feature_step"]  # of an older version
    assert changed_keys(config, stored) == ["data.degrade.clean", "train.lr"]


DOUBLED = ", ".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]" for i in range(40))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 3000, "is no YAML of plain values"),  # PyYAML calls itself for each
        ("data: {options: &a {x: *a}}", "more than 10000 values or 50 levels"),
        (f"data: {{options: {{a0: &a0 [1, 2], {DOUBLED}}}}}", "more than 10000 values or 50 levels"),
        ("[1, 2]", "the file is a value, not a section"),
        ("train: {lr: \xff}", "is no text"),
    ],
    ids=["nested", "itself", "two to the 40", "a list", "no text"],
)
def test_a_file_that_is_no_configuration(tmp_path, text, sentence):
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=sentence):
        read_config(FlowConfig, str(path), ["train.lr=1"])
