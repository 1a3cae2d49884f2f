"""Stage 2 with DA-Flow's flow network on a frozen transformer."""

import pytest
import torch

pytest.importorskip("diffusers")

from daflow_ext.models import RAFT
from daflow_ext.models.pipeline import DAFlowPipeline
from daflow_ext.train import FlowConfig, Trainer, checkpoint, read_config
from daflow_ext.train.data import TrainingClips
from daflow_ext.train.flow import FlowStage
from daflow_ext.train.networks import build_network, restoration_of

TINY = (
    "data.crop=[32, 48]",
    "loss.iters=2",
    "train.batch=1",
    "train.workers=0",
    "train.steps=2",
    "train.schedule=constant",
    "validation.every=0",
)


def config_of(*overrides):
    return read_config(FlowConfig, "daflow-tiny-flow", (*TINY, *overrides))


def make(source, out, *overrides):
    config = config_of(*overrides)
    torch.manual_seed(0)
    stage = FlowStage(*build_network(config.model), config, None)
    return Trainer(stage, TrainingClips(source, config.data, 0), config, out, report=lambda line: None)


def test_training_writes_a_pipeline_with_the_transformer_untouched(tmp_path, translations):
    restoration_of("daflow-tiny", None).save(tmp_path / "stage1")
    trainer = make(translations(), tmp_path / "run", f"model.restoration={tmp_path / 'stage1'}", "train.ema=0")
    frozen = {name: x.clone() for name, x in trainer.stage.features.restoration.transformer.state_dict().items()}
    before = {name: x.clone() for name, x in trainer.stage.model.state_dict().items()}
    trainer.run()
    pipe = DAFlowPipeline.from_pretrained(tmp_path / "run" / "model")
    assert all(torch.equal(frozen[name], x) for name, x in pipe.transformer.state_dict().items())
    after = pipe.flow.state_dict()
    assert all(torch.equal(after[name], x) for name, x in trainer.stage.model.state_dict().items())
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"raft", "heads"}
    saved = torch.load(tmp_path / "run" / checkpoint.NAME, weights_only=True)["model"]
    assert not any("transformer" in name for name in saved)


def test_the_prediction_is_that_of_the_pipeline(tmp_path, translations):
    config = config_of()
    torch.manual_seed(0)
    model, features = build_network(config.model)
    stage = FlowStage(model, features, config, None).eval()
    loop = features.restoration
    pipe = DAFlowPipeline(loop.vae, loop.transformer, loop.scheduler, loop.prompt, model)
    frames = torch.from_numpy(translations((32, 48))[3].frames).permute(0, 3, 1, 2)[None]
    with torch.no_grad():
        ours = stage.predict(frames, 3, torch.Generator().manual_seed(0), test_mode=True)[1]
    theirs = pipe(frames, iters=3, generator=torch.Generator().manual_seed(0)).flows[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("correlation", ["concat", "sum"])
def test_it_starts_as_the_raft_it_is_given(tmp_path, correlation):
    from daflow_ext.models import weights

    torch.manual_seed(1)
    raft = RAFT(small=True).eval()
    weights.write(raft.state_dict(), raft.config, tmp_path / "raft.safetensors")
    config = config_of(f"model.raft={tmp_path / 'raft.safetensors'}", f"model.options.correlation={correlation}")
    stage = FlowStage(*build_network(config.model), config, None).eval()
    clip = torch.randint(0, 256, (1, 3, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        ours = stage.predict(clip, 3, test_mode=True)[1]
        theirs = raft(clip[0, :2], clip[0, 1:], iters=3, test_mode=True)[1]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_recomputed_activations_and_half_precision_features_keep_the_loss(tmp_path, translations):
    changes = {"plain": (), "again": ("train.checkpointing=true",), "bf16": ("model.restoration_dtype=bfloat16",)}
    runs = {}
    for name, overrides in changes.items():
        make(translations(), tmp_path / name, *overrides).run()
        runs[name] = [one["loss"] for one in checkpoint.records(tmp_path / name)]
    assert runs["again"] == pytest.approx(runs["plain"], rel=1e-5)
    assert runs["bf16"] == pytest.approx(runs["plain"], rel=0.05)


def test_a_stopped_run_repeats_the_losses(tmp_path, translations):
    options = ("model.feature_step=random", "model.num_inference_steps=2", "train.steps=3")
    make(translations(), tmp_path / "whole", *options).run()
    for _ in range(3):
        make(translations(), tmp_path / "parts", *options, "train.max_minutes=0").run()
    assert checkpoint.records(tmp_path / "parts") == checkpoint.records(tmp_path / "whole")


@pytest.mark.slow
def test_it_overfits_a_few_clips(tmp_path, translations):
    settings = ("train.steps=140", "train.batch=2", "train.lr=1e-3", "loss.iters=3", "train.schedule=onecycle")
    still = ("data.degrade.clean=1.0", "data.augment.flip_x=0", "data.augment.flip_y=0", "train.ema=0")
    make(translations(count=2), tmp_path, *settings, *still).run()
    values = [one["loss"] for one in checkpoint.records(tmp_path)]
    assert sum(values[:10]) > 5 * sum(values[-10:])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.dropout=0.1"], r"model\.dropout cannot be set for daflow-tiny"),
        (
            ["model.name=raft-small", "model.options={correlation: sum}"],
            r"model\.options cannot be set for raft-small",
        ),
        (["model.init=somewhere", "model.raft=other"], r"model\.init already decides model\.raft"),
    ],
)
def test_settings_of_another_network_are_refused(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_network(config_of(*overrides).model)
