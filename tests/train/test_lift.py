import pytest
import torch

pytest.importorskip("diffusers")

from daflow_ext.features.restoration import LiftedRestoration
from daflow_ext.train import LiftConfig, Trainer, checkpoint, read_config
from daflow_ext.train.config import LiftModelConfig
from daflow_ext.train.data import HeldOut, TrainingClips
from daflow_ext.train.lift import LiftStage, choose_trainable
from daflow_ext.train.networks import restoration_of

TINY = ("data.crop=[32, 32]", "train.batch=1", "train.workers=0", "train.steps=2", "validation.every=0")


def make(source, out, *overrides):
    config = read_config(LiftConfig, "daflow-tiny-lift", (*TINY, *overrides))
    torch.manual_seed(0)
    restoration = restoration_of("daflow-tiny", config.model.init)
    restoration.transformer.register_to_config(lift=config.model.lift)
    held_out = HeldOut(source, config.data.crop, 1, 0) if config.validation.every else None
    clips = TrainingClips(source, config.data, 0, truth=False)
    return Trainer(LiftStage(restoration, config, held_out), clips, config, out, report=lambda line: None)


def losses(folder):
    return [one["loss"] for one in checkpoint.records(folder) if "loss" in one]


def test_a_run_leaves_a_restoration_model_and_goes_on_where_it_stopped(tmp_path, translations):
    scored = ("validation.every=2", "validation.levels=[level3]", "validation.iters=2", "train.checkpoint_every=1")
    make(translations(), tmp_path / "whole", *scored).run()
    restoration = LiftedRestoration.load(tmp_path / "whole" / "model")
    assert restoration.transformer.config.lift == "all"
    (first, last) = (one["validation"] for one in checkpoint.records(tmp_path / "whole") if "validation" in one)
    assert set(first) == {"loss/level3", "psnr/level3", "psnr_input/level3"}
    assert first["psnr_input/level3"] == last["psnr_input/level3"]
    assert first["loss/level3"] != last["loss/level3"]
    assert (tmp_path / "whole" / "pictures" / "step0000002-level3-0.png").exists()
    for _ in range(2):
        make(translations(), tmp_path / "parts", "train.max_minutes=0", *scored).run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_the_loss_is_that_of_the_velocity(tmp_path, translations):
    """A transformer that answers noise - clean has no loss; answering 0 costs the mean square of it, times sigma^2."""
    config = read_config(LiftConfig, "daflow-tiny-lift", (*TINY, "loss.target=clean"))
    stage = LiftStage(restoration_of("daflow-tiny", None), config, None)
    clean, noise = torch.randn(2, 3, 192, 4, 4), torch.randn(2, 3, 192, 4, 4)
    sigma = torch.tensor([0.5, 0.25])
    answer = noise - clean

    class Fake(torch.nn.Module):
        def forward(self, noisy, lq, text, pooled, timestep):
            assert torch.equal(timestep, 1000 * sigma)
            return type("Output", (), {"sample": answer})

    stage.transformer = Fake()
    assert float(stage._loss(clean, clean, sigma, noise)) == 0
    answer = torch.zeros_like(clean)
    error = (noise - clean).square().mean(dim=(1, 2, 3, 4))
    expected = (error * sigma**2).mean()
    assert float(stage._loss(clean, clean, sigma, noise)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("trainable", "moving"), [("attention", ".attn."), ("control", "control")])
def test_only_the_chosen_parameters_move(tmp_path, translations, trainable, moving):
    before = restoration_of("daflow-tiny", None)
    before.save(tmp_path / "before")
    trainer = make(
        translations(),
        tmp_path / "run",
        f"model.trainable={trainable}",
        f"model.init={tmp_path / 'before'}",
        "train.steps=2",
        "train.schedule=constant",
    )
    trainer.run()
    state, after = before.transformer.state_dict(), trainer.stage.transformer.state_dict()
    moved = {name for name in state if not torch.equal(state[name], after[name])}
    assert moved
    assert all(moving in name for name in moved)
    assert not any("to_k_control" in name for name in moved)  # nothing reads it under hq_renorm


def test_trainable_sets():
    transformer = restoration_of("daflow-tiny", None).transformer
    counts = {}
    for name in ("all", "attention", "control"):
        choose_trainable(transformer, LiftModelConfig(trainable=name))
        counts[name] = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    assert counts["all"] > counts["attention"] > counts["control"] > 0


def test_adapters_without_peft_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    transformer = restoration_of("daflow-tiny", None).transformer
    with pytest.raises(ImportError, match="pip install peft"):
        choose_trainable(transformer, LiftModelConfig(lora_rank=4))


def test_adapters_alone_are_trained_and_written(tmp_path, translations):
    """A second transformer with the written adapters gives what the trained one gives."""
    pytest.importorskip("peft")
    before = restoration_of("daflow-tiny", None)
    before.save(tmp_path / "before")
    options = ("model.lora_rank=2", f"model.init={tmp_path / 'before'}", "train.schedule=constant", "train.ema=0")
    trainer = make(translations(), tmp_path / "run", *options)
    trainer.run()
    trained = trainer.stage.transformer
    moved = {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
    assert moved
    assert all("lora_" in name for name in moved)
    base = before.transformer.state_dict()
    kept = {name.replace(".base_layer", ""): x for name, x in trained.state_dict().items() if "lora_" not in name}
    assert all(torch.equal(base[name], x) for name, x in kept.items())

    other = restoration_of("daflow-tiny", str(tmp_path / "before")).transformer
    other.load_lora_adapter(str(tmp_path / "run" / "lora"), prefix=None, use_safetensors=True)
    names = [name for name in trained.state_dict() if "lora_B" in name]
    written = {name.replace("default_0", "default"): x for name, x in other.state_dict().items()}
    assert any(trained.state_dict()[name].abs().max() > 0 for name in names)
    assert all(torch.equal(trained.state_dict()[name], written[name]) for name in names)


def test_recomputed_activations_change_no_loss(tmp_path, translations):
    for name in ("false", "true"):
        make(translations(), tmp_path / name, f"train.checkpointing={name}", "train.steps=2").run()
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-5)


def test_bf16_stays_near_float32(tmp_path, translations, forget_precision):
    for precision in ("no", "bf16"):
        forget_precision()
        make(translations(), tmp_path / precision, f"train.mixed_precision={precision}").run()
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "no"), rel=0.05)
    assert losses(tmp_path / "bf16") != losses(tmp_path / "no")


@pytest.mark.parametrize("timestep", [torch.tensor(700.0), torch.tensor([700.0, 50.0])])
def test_a_network_that_predicts_clean_latents_answers_with_the_velocity(timestep):
    transformer = restoration_of("daflow-tiny", None).transformer
    assert transformer.config.prediction == "clean"
    noisy, lq = torch.randn(2, 2, 192, 4, 4), torch.randn(2, 2, 192, 4, 4)
    arguments = (noisy, lq, torch.zeros(2, 1, 16), torch.zeros(2, 16), timestep)
    with torch.no_grad():
        velocity = transformer(*arguments).sample
        transformer.register_to_config(prediction="velocity")
        clean = transformer(*arguments).sample
    sigma = (timestep / 1000).expand(2).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(noisy - sigma * velocity, clean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_overfits_a_clip(tmp_path, translations):
    still = [f"data.augment.{name}=0" for name in ("brightness", "contrast", "saturation", "hue", "flip_x", "flip_y")]
    settings = ("train.steps=250", "train.batch=2", "train.lr=2e-3", "train.ema=0", "data.degrade.clean=1.0")
    make(translations((32, 32), count=1), tmp_path, *settings, *still).run()
    values = losses(tmp_path)
    assert sum(values[:10]) > 5 * sum(values[-10:])
