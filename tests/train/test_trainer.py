import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from daflow_ext.models import RAFT
from daflow_ext.train import Trainer, checkpoint
from daflow_ext.train.data import HeldOut, TrainingClips
from daflow_ext.train.flow import WEIGHTS, FlowStage
from daflow_ext.train.networks import build_network


def make(config, source, out, **options):
    torch.manual_seed(config.train.seed)
    held_out = HeldOut(source, config.data.crop, config.validation.clips, 0) if config.validation.every else None
    stage = FlowStage(*build_network(config.model), config, held_out)
    clips = TrainingClips(source, config.data, config.train.seed)
    return Trainer(stage, clips, config, out, report=lambda line: None, **options)


def losses(folder):
    return [(one["step"], one["loss"], one["grad_norm"]) for one in checkpoint.records(folder) if "loss" in one]


def test_a_run_leaves_weights_a_card_a_log_and_pictures(tmp_path, flow_config, translations):
    config = flow_config(
        "train.steps=3", "validation.every=3", "validation.clips=2", "validation.levels=[clean, level2]"
    )
    outcome = make(config, translations(), tmp_path, command="daflow train flow").run()
    assert (outcome.reason, outcome.step) == ("finished", 3)
    lines = checkpoint.records(tmp_path)
    assert [one["step"] for one in lines if "loss" in one] == [1, 2, 3]
    assert [sorted(one["validation"]) for one in lines if "validation" in one] == [["epe/clean", "epe/level2"]] * 2
    assert RAFT.from_pretrained(tmp_path / WEIGHTS).small
    card = (tmp_path / "README.md").read_text()
    for fact in ("Steps: 3;", "Seed: 0", "| step | epe/clean | epe/level2 |", "daflow train flow", WEIGHTS):
        assert fact in card
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"step0000000-clean-0.png", "step0000003-level2-1.png"} <= pictures


def test_written_weights_are_the_average(tmp_path, flow_config, translations):
    trainer = make(flow_config("train.steps=3", "train.ema=0.5"), translations(), tmp_path)
    trainer.run()
    name = "update_block.flow_head.conv2.weight"
    written = RAFT.from_pretrained(tmp_path / WEIGHTS).state_dict()[name]
    assert torch.equal(written, trainer.average.averages[f"model.{name}"])
    assert not torch.equal(written, trainer.stage.state_dict()[f"model.{name}"])


def test_the_average_by_hand():
    from daflow_ext.train.ema import Average

    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    average = Average(module, 0.9)
    for value in (1.0, 2.0):
        module.weight.data.fill_(value)
        average.update()
    expected = 0.9 * 1.0  # decay 1/10
    expected = 2 / 11 * expected + 9 / 11 * 2.0
    with average.applied():
        assert module.weight.item() == pytest.approx(expected)
    assert module.weight.item() == 2.0


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from conftest import TINY, Translations
    from test_trainer import make
    from daflow_ext.train import FlowConfig, read_config

    overrides = (*TINY, *sys.argv[3:])
    trainer = make(read_config(FlowConfig, "raft-tiny-lq", overrides), Translations(), sys.argv[1])
    how, at = sys.argv[2].split("@")
    step = trainer._train_step

    def until(batches):
        figures = step(batches)
        if trainer.step == int(at):
            os.killpg(0, getattr(signal, how))  # all processes, as a job scheduler does
        return figures

    trainer._train_step = until
    print(trainer.run().reason)
"""


def run_until(tests, folder, how, at):
    code = textwrap.dedent(KILLED.format(tests=str(tests)))
    command = [sys.executable, "-c", code, str(folder), f"{how}@{at}", "train.workers=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, start_new_session=True)


def test_a_killed_run_goes_on_with_the_very_same_losses(tmp_path, flow_config, translations, request):
    torch.set_num_threads(1)
    config = flow_config("train.threads=1")
    make(config, translations(), tmp_path / "whole").run()
    killed = run_until(request.path.parent, tmp_path / "cut", "SIGKILL", 3)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [step for step, *_ in losses(tmp_path / "cut")][-1] >= 2
    again = make(config, translations(), tmp_path / "cut")
    assert again.step == 2  # the last checkpoint before the kill
    again.run()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    state = [RAFT.from_pretrained(tmp_path / run / WEIGHTS).state_dict() for run in ("whole", "cut")]
    assert all(torch.equal(state[0][name], state[1][name]) for name in state[0])


def test_sigterm_stops_cleanly_between_checkpoints(tmp_path, flow_config, translations, request):
    stopped = run_until(request.path.parent, tmp_path, "SIGTERM", 3)
    assert stopped.stdout.split() == ["signal"], stopped.stderr
    assert make(flow_config(), translations(), tmp_path).step == 3


def test_the_time_budget_stops_and_the_same_command_goes_on(tmp_path, flow_config, translations):
    make(flow_config(), translations(), tmp_path / "whole").run()
    reasons = []
    while len(reasons) < 6:
        outcome = make(flow_config("train.max_minutes=0"), translations(), tmp_path / "parts").run()
        reasons.append(outcome.reason)
    assert reasons == ["time"] * 5 + ["finished"]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_folder_of_another_run_is_refused_unless_restarted(tmp_path, flow_config, translations):
    make(flow_config("train.steps=1"), translations(), tmp_path).run()
    with pytest.raises(ValueError, match=r"another train\.steps, train\.lr"):
        make(flow_config("train.steps=2", "train.lr=2e-4"), translations(), tmp_path)
    make(flow_config("train.steps=1", "train.workers=1"), translations(), tmp_path)  # decides no loss
    assert make(flow_config("train.steps=2"), translations(), tmp_path, restart=True).step == 0


def test_nan_stops_the_run_and_keeps_the_batch_and_the_weights(tmp_path, flow_config, translations, monkeypatch):
    def trusting(predictions, truth, valid, **options):  # sequence_loss leaves NaN out
        return (predictions[-1] - truth).abs().mean()

    monkeypatch.setattr("daflow_ext.train.flow.sequence_loss", trusting)

    class Poisoned(translations):
        def __getitem__(self, index):
            clip = super().__getitem__(index)
            if index == 7:  # of the fourth step
                clip.flow[:] = float("nan")
            return clip

    with pytest.raises(FloatingPointError, match=r"step 4: .*nan-step4-process0\.safetensors"):
        make(flow_config(), Poisoned(), tmp_path).run()
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "nan-step4-process0.safetensors")
    assert saved["0.flow"][1].isnan().all()
    assert saved["0.flow"][0].isfinite().all()
    assert torch.load(tmp_path / checkpoint.NAME, weights_only=True)["step"] == 2
    assert [step for step, *_ in losses(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_cannot_be_read_is_one_sentence(tmp_path, flow_config, translations, workers):
    class Broken(translations):
        def __getitem__(self, index):
            if index == 3:
                raise ValueError("clip 3: its file is cut off")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match=r"^step 2: (ValueError: )?clip 3: its file is cut off$"):
        make(flow_config(f"train.workers={workers}"), Broken(), tmp_path).run()


def test_accumulated_batches_give_the_step_of_a_large_one(tmp_path, flow_config, translations):
    """Both see the same clips; gradients are means, so the steps agree up to rounding."""
    runs = {}
    for name, batch, parts in (("one", 4, 1), ("two", 2, 2)):
        config = flow_config("train.steps=2", f"train.batch={batch}", f"train.accumulate={parts}")
        make(config, translations(), tmp_path / name).run()
        runs[name] = losses(tmp_path / name)
    for (_, loss, norm), (_, other, other_norm) in zip(*runs.values(), strict=True):
        assert loss == pytest.approx(other, rel=1e-4)
        assert norm == pytest.approx(other_norm, rel=1e-3)


def test_recomputed_activations_change_no_loss(tmp_path, flow_config, translations):
    for name, value in (("kept", "false"), ("again", "true")):
        make(flow_config("train.steps=2", f"train.checkpointing={value}"), translations(), tmp_path / name).run()
    assert losses(tmp_path / "kept") == losses(tmp_path / "again")


def test_bf16_stays_near_float32(tmp_path, flow_config, translations, forget_precision):
    for precision in ("no", "bf16"):
        forget_precision()
        config = flow_config("train.steps=2", f"train.mixed_precision={precision}")
        make(config, translations(), tmp_path / precision).run()
    for (_, loss, _), (_, other, _) in zip(losses(tmp_path / "no"), losses(tmp_path / "bf16"), strict=True):
        assert loss == pytest.approx(other, rel=0.05)
        assert loss != other


def test_tensorboard_that_is_missing_is_named(tmp_path, flow_config, translations, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard, or set it to false"):
        make(flow_config("train.tensorboard=true"), translations(), tmp_path).run()


def test_tensorboard_gets_every_loss(tmp_path, flow_config, translations):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make(flow_config("train.tensorboard=true", "train.steps=2", "train.log_every=1"), translations(), tmp_path).run()
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (tag,) = (tag for tag in board.Tags()["scalars"] if tag.endswith("loss"))
    logged = [(one["step"], one["loss"]) for one in checkpoint.records(tmp_path) if "loss" in one]
    assert [(event.step, pytest.approx(event.value)) for event in board.Scalars(tag)] == logged
    assert len(logged) == 2


@pytest.mark.slow
def test_it_overfits_a_few_clips(tmp_path, flow_config, translations):
    config = flow_config(
        "train.steps=300",
        "train.batch=4",
        "train.lr=4e-4",
        "loss.iters=4",
        "data.degrade.clean=1.0",
        "data.augment.flip_x=0",
        "data.augment.flip_y=0",
        "train.ema=0",
    )
    make(config, translations(count=4), tmp_path).run()
    values = [loss for _, loss, _ in losses(tmp_path)]
    assert sum(values[:10]) > 5 * sum(values[-10:])


def test_log_lines_are_json_objects_with_rates(tmp_path, flow_config, translations):
    make(flow_config("train.steps=3", "train.schedule=constant", "train.lr=1e-4"), translations(), tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / checkpoint.LOG).read_text().splitlines()]
    assert [one["lr"] for one in lines] == [1e-4] * 3
