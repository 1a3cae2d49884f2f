"""Training and scoring, in as many stretches as it takes."""

import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from daflow_ext.cli._estimate import model_identity
from daflow_ext.datasets.scenes import Scenes
from daflow_ext.evaluate.predictors import DAFlowPredictor, Predictor, RaftPredictor
from daflow_ext.evaluate.records import RecordFile
from daflow_ext.evaluate.runner import validate
from daflow_ext.evaluate.zero_shot import analyze_clip
from daflow_ext.features.restoration import LiftedRestoration
from daflow_ext.frames._files import atomic_path
from daflow_ext.frames.degrade.evaluation_set import file_hash
from daflow_ext.models import RAFT
from daflow_ext.models.pipeline import DAFlowPipeline
from daflow_ext.train import LiftConfig, Trainer, flow, lift
from daflow_ext.train.config import changed_keys, to_dict
from daflow_ext.train.data import degradation_of, loader, open_source

from .. import timing
from .plan import (
    LEVELS,
    SEEDED,
    TRANSFORMERS,
    ZERO_SHOT_LEVEL,
    Plan,
    Run,
    flow_run,
    random_run,
    start_run,
    transformer_runs,
)

FINISHED, RATIO, SCORES, ZERO_SHOT = "finished.json", "step_ratio.json", "scores.jsonl", "zero_shot.jsonl"


class Stopped(Exception):
    """The time is over, or SIGTERM came; what was done is on disk."""


class Budget:
    """Minutes that may still be used, None for no limit."""

    def __init__(self, minutes: float | None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def left(self) -> float | None:
        """Minutes, at least 0."""
        return None if self.end is None else max(0.0, (self.end - time.monotonic()) / 60)

    def check(self, *_: object) -> None:
        """Raises :class:`Stopped` after the end."""
        if self.left() == 0:
            raise Stopped("the time budget is used up")


def experiment(plan: Plan, out: pathlib.Path, budget: Budget, say: Callable[[str], None]) -> None:
    """Everything that is not yet in ``out``: transformers and their table, then seed by seed training and scores.

    Raises:
        Stopped: before the end; the same call goes on.
    """
    for run in transformer_runs(plan, out):
        train(run, out, budget, say)
    write_random(random_run(plan), out)
    zero_shot(plan, out, budget, say)
    train(start_run(plan), out, budget, say)
    for seed in range(plan.seeds):
        for variant in SEEDED:
            steps = extra_steps(plan, out, budget) if variant == "v2+" else None
            train(flow_run(variant, seed, plan, out, steps), out, budget, say)
        score(plan, out, seed, budget, say)


# ---- training -------------------------------------------------------------------------------------------------------


def train(run: Run, out: pathlib.Path, budget: Budget, say: Callable[[str], None]) -> None:
    """One run to its end, from where it is; nothing if it is finished.

    Raises:
        Stopped: before its end. ValueError: the folder holds a run of another configuration.
    """
    folder = out / run.name
    if (folder / FINISHED).exists():
        changed = changed_keys(run.config, json.loads((folder / FINISHED).read_text())["config"])
        if changed:
            raise ValueError(f"{folder} holds a run with another {', '.join(changed)}; choose another --out")
        return
    budget.check()
    run.config.train.max_minutes = budget.left()
    stage, clips = (lift if isinstance(run.config, LiftConfig) else flow).build(run.config)
    outcome = Trainer(stage, clips, run.config, folder, command="(python -m benchmarks.degradation_aware)").run()
    say(f"{run.name}: step {outcome.step} of {run.config.train.steps} after {outcome.seconds:.0f} s")
    if outcome.reason != "finished":
        raise Stopped(f"{run.name} stopped at step {outcome.step} of {run.config.train.steps} ({outcome.reason})")
    finish(folder, run, outcome.step, outcome.seconds)


def finish(folder: pathlib.Path, run: Run, steps: int, seconds: float) -> None:
    write_json(folder / FINISHED, {"steps": steps, "seconds": round(seconds, 2), "config": to_dict(run.config)})


def write_json(path: pathlib.Path, content: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def write_random(run: Run, out: pathlib.Path) -> None:
    """The transformer of V4, nothing of which was trained."""
    folder = out / run.name
    if (folder / FINISHED).exists():
        return
    stage, _ = lift.build(run.config)
    draw_control(stage.transformer)
    folder.mkdir(parents=True, exist_ok=True)
    stage.write(folder)
    finish(folder, run, 0, 0.0)


@torch.no_grad()
def draw_control(transformer: torch.nn.Module) -> None:
    """Draw what training starts at zero, too: through it alone the frames reach the tapped queries and keys."""
    unread = "to_k_control" if transformer.config.lq_key_mode == "hq_renorm" else None
    for name, module in transformer.named_modules():
        if "control" not in name or not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            continue
        if unread is None or not name.endswith(unread):
            module.reset_parameters()


def extra_steps(plan: Plan, out: pathlib.Path, budget: Budget) -> int:
    """Steps of V2+: those of the plan times the seconds of a step of V3 over those of V2, timed once, in turn."""
    path = out / RATIO
    if not path.exists():
        budget.check()
        times = step_times({variant: flow_run(variant, 0, plan, out) for variant in ("v2", "v3")})
        write_json(path, times | {"ratio": max(1.0, times["v3"] / times["v2"])})
    return math.ceil(plan.steps * json.loads(path.read_text())["ratio"])


def step_times(runs: dict[str, Run], repeats: int = 5) -> dict[str, float]:
    """Median seconds of a training step on the same clips: of the CPU, or of the GPU where there is one."""
    device = device_name()
    calls = {}
    for name, run in runs.items():
        stage, clips = flow.build(run.config)
        stage.to(device).train()
        stage.place(torch.device(device))
        first = loader(clips, done=0, total=1, batch=run.config.train.batch, rank=0, world=1, workers=0)
        calls[name] = _step(stage, {key: x.to(device) for key, x in next(iter(first)).items()})
    with timing.threads(1):
        times = timing.interleaved(calls, repeats=repeats, device=device)
    return {name: one.median for name, one in times.items()}


def _step(stage: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad])

    def call() -> None:
        loss, _ = stage(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def device_name() -> str:
    """Where the trainer works, too."""
    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- scoring --------------------------------------------------------------------------------------------------------


class RestoredPredictor:
    """RAFT on three frames that the restoration transformer has cleaned; the same starting noise for every item."""

    clip = 3

    def __init__(self, name: str, restoration: LiftedRestoration, raft: RaftPredictor, identity: str, steps: int):
        self.name, self.restoration, self.raft, self.steps = name, restoration, raft, steps
        self.identity = f"{raft.identity} after {identity} steps={steps}"

    def __call__(
        self, frames: np.ndarray, pair: int, *, backward: bool = False, pad_mode: str = "sintel"
    ) -> torch.Tensor:
        """As :class:`daflow_ext.evaluate.predictors.Predictor`."""
        restored = self.restoration.restore(
            torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None],
            num_inference_steps=self.steps,
            generator=torch.Generator().manual_seed(0),
            color_fix="none",  # as the tiny transformer is validated
        )
        images = restored[0].clamp(0, 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return self.raft(images, pair, backward=backward, pad_mode=pad_mode)


def held_out(plan: Plan, level: str) -> Scenes:
    """Scenes of the test split: photographs, patterns and motion that no training clip has."""
    data = start_run(plan).config.data
    return open_source(data, split="test", seed=0, length=plan.clips, degrade=degradation_of(level))


def predictors(plan: Plan, out: pathlib.Path, seed: int) -> list[Predictor]:
    """The trained variants of a seed."""
    return [_predictor(name, plan, out) for name in plan.models(seed)]


def _predictor(name: str, plan: Plan, out: pathlib.Path) -> Predictor:
    if name == "v6":
        folder = out / "dit-lifted" / "model"
        (weights,) = (folder / "transformer").glob("*.safetensors")
        restoration = LiftedRestoration.load(folder, device=device_name())
        raft = _predictor("v1", plan, out)
        return RestoredPredictor(name, restoration, raft, file_hash(weights)[:16], plan.restore_steps)
    if name.startswith(("v1", "v2")):
        model = RAFT.from_pretrained(out / name / flow.WEIGHTS).to(device_name())
        return RaftPredictor(name, model, model_identity(model), iters=plan.iters)
    pipe = DAFlowPipeline.from_pretrained(out / name / flow.PIPELINE).to(device_name())
    return DAFlowPredictor(name, pipe, model_identity(pipe), iters=plan.iters)


def open_scores(plan: Plan, out: pathlib.Path) -> RecordFile:
    return RecordFile(out / SCORES, {"crop": plan.crop, "textures": plan.textures})


def score(plan: Plan, out: pathlib.Path, seed: int, budget: Budget, say: Callable[[str], None]) -> None:
    """Every variant of a seed on every held-out clip at every level; each result is stored at once.

    Raises:
        Stopped: between two results.
    """
    records, names = open_scores(plan, out), plan.models(seed)
    items = [held_out(plan, LEVELS[0]).item_name(index) for index in range(plan.clips)]
    if all((name, level, item) in records.records for name in names for level in LEVELS for item in items):
        return
    validate(
        lambda level: held_out(plan, level),
        LEVELS,
        predictors(plan, out, seed),
        records,
        workers=plan.workers,
        step=budget.check,
    )
    say(f"seed {seed}: {len(names)} models scored on {plan.clips} clips at {len(LEVELS)} levels")


def open_zero_shot(plan: Plan, out: pathlib.Path) -> RecordFile:
    settings = {"crop": plan.crop, "textures": plan.textures, "steps": plan.zero_shot_steps, "level": ZERO_SHOT_LEVEL}
    return RecordFile(out / ZERO_SHOT, settings)


def zero_shot(plan: Plan, out: pathlib.Path, budget: Budget, say: Callable[[str], None]) -> None:
    """Flow by matching queries and keys, per transformer, layer and denoising step, on held-out clips.

    Raises:
        Stopped: between two clips.
    """
    records, scenes = open_zero_shot(plan, out), held_out(plan, ZERO_SHOT_LEVEL)
    names = {scenes.item_name(index): index for index in range(plan.zero_shot_clips)}
    for transformer in TRANSFORMERS:
        todo = {item: i for item, i in names.items() if (transformer, ZERO_SHOT_LEVEL, item) not in records.records}
        if not todo:
            continue
        restoration = LiftedRestoration.load(out / transformer / "model", device=device_name())
        settings = restoration.transformer.config
        for item, index in todo.items():
            budget.check()
            clip = scenes[index]
            table = analyze_clip(
                restoration,
                torch.from_numpy(np.ascontiguousarray(clip.inputs)).permute(0, 3, 1, 2).to(device_name()),
                torch.from_numpy(np.ascontiguousarray(clip.flow)).permute(0, 3, 1, 2),
                torch.from_numpy(clip.valid),
                layers=range(settings.num_layers),
                num_inference_steps=plan.zero_shot_steps,
                temperature=settings.attention_head_dim**0.5,
                generator=torch.Generator().manual_seed(index),
            )
            found = {"model": transformer, "level": ZERO_SHOT_LEVEL, "item": item, "timesteps": table.timesteps}
            records.add(found | {"layers": table.layers, "total": table.total.tolist(), "count": table.count})
        say(f"{transformer}: queries and keys matched on {len(names)} clips")
