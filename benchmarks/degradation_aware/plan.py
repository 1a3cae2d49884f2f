"""What is trained: every run as a configuration of :mod:`daflow_ext.train`."""

import dataclasses
import json
import pathlib
from typing import Any

from daflow_ext.datasets import CLEAN
from daflow_ext.train import FlowConfig, LiftConfig, read_config
from daflow_ext.train.config import to_dict

DEGRADED = ("level1", "level2", "level3", "level4", "level5", "realbasicvsr")
LEVELS = (CLEAN, *DEGRADED)
ZERO_SHOT_LEVEL = "level3"

TRANSFORMERS = ("dit-lifted", "dit-unlifted", "dit-random")
VARIANTS = ("v1", "v2", "v2+", "v3", "v4", "v5", "v6")
SEEDED = ("v2", "v2+", "v3", "v4", "v5")
BASELINES = ("v2", "v2+", "v4")
"""What V3 must beat."""

_FEATURES = {"v3": "dit-lifted", "v4": "dit-random", "v5": "dit-unlifted"}
_TRANSFORMER_SEED, _START_SEED = 1001, 1002  # so that no seed of the variants repeats their clips


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of the experiment.

    Attributes:
        steps: of V1 to V5. dit_steps: of each of the two stages of a transformer. seeds: how many.
        clips: held-out clips, one pair each. zero_shot_clips: of these, for the table of layers and steps.
        batch, crop: training clips per step, their height and width; held-out clips have that size, too.
        raft: RAFT-small weights that V1 starts from; None: random.
        textures: of the scenes, see :class:`daflow_ext.datasets.scenes.Scenes`.
        iters: refinement steps when scored. restore_steps: denoising steps of V6. zero_shot_steps: of the table.
        quick: a few steps that show that everything runs.
    """

    steps: int = 2000
    dit_steps: int = 3000
    seeds: int = 3
    clips: int = 128
    zero_shot_clips: int = 32
    batch: int = 4
    crop: tuple[int, int] = (128, 160)
    raft: str | None = None
    textures: tuple[str, ...] = ("procedural", "photos")
    iters: int = 12
    restore_steps: int = 4
    zero_shot_steps: int = 5
    quick: bool = False
    workers: int = 1
    threads: int = 1

    def __post_init__(self):
        for name in ("steps", "dit_steps", "seeds", "clips", "zero_shot_clips", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.zero_shot_clips > self.clips:
            raise ValueError(f"zero_shot_clips are some of the {self.clips} clips, got {self.zero_shot_clips}")

    def models(self, seed: int) -> tuple[str, ...]:
        """The names under which the variants of a seed are scored; V1 and V6 belong to the first."""
        names = tuple(model_name(variant, seed) for variant in SEEDED)
        return names if seed else ("v1", "v6", *names)

    def all_models(self, variant: str) -> tuple[str, ...]:
        """The same variant with every seed."""
        return tuple(dict.fromkeys(model_name(variant, seed) for seed in range(self.seeds)))


def model_name(variant: str, seed: int) -> str:
    return f"{variant}-seed{seed}" if variant in SEEDED else variant


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: the folder it is in, and its configuration."""

    name: str
    config: Any


def transformer_runs(plan: Plan, out: pathlib.Path) -> list[Run]:
    """Per frame first; then lifted, and as many steps more per frame."""
    stages = (("dit-frame", "none", None), ("dit-lifted", "all", "dit-frame"), ("dit-unlifted", "none", "dit-frame"))
    runs = []
    for name, lift, start in stages:
        options = {
            "model.lift": lift,
            "model.init": start and str(out / start / "model"),
            "train.steps": plan.dit_steps,
        }
        runs.append(Run(name, _read(LiftConfig, "daflow-tiny-lift", plan, _TRANSFORMER_SEED, options)))
    return runs


def random_run(plan: Plan) -> Run:
    """The lifted transformer as it is before any training."""
    options = {"model.lift": "all", "train.steps": 1}
    return Run("dit-random", _read(LiftConfig, "daflow-tiny-lift", plan, _TRANSFORMER_SEED, options))


def start_run(plan: Plan) -> Run:
    """V1; from random weights at the learning rate of RAFT's first stage."""
    options = {"train.steps": plan.steps, "data.degrade.clean": 1.0, "model.init": plan.raft}
    if plan.raft is None:
        options["train.lr"] = 4e-4
    return Run("v1", _read(FlowConfig, "raft-tiny-lq", plan, _START_SEED, options))


def flow_run(variant: str, seed: int, plan: Plan, out: pathlib.Path, steps: int | None = None) -> Run:
    """V2 to V5 with a seed; ``steps`` other than the plan's for V2+.

    Raises:
        ValueError: the packaged configurations of RAFT and DA-Flow have come to differ in more than the network.
    """
    options: dict[str, Any] = {"train.steps": steps or plan.steps}
    start = str(out / "v1" / "model.safetensors")
    plain = _read(FlowConfig, "raft-tiny-lq", plan, seed, {**options, "model.init": start})
    if variant not in _FEATURES:
        return Run(model_name(variant, seed), plain)
    restoration = str(out / _FEATURES[variant] / "model")
    options |= {"model.raft": start, "model.restoration": restoration}
    hybrid = _read(FlowConfig, "daflow-tiny-flow", plan, seed, options)
    for section in ("data", "loss", "train"):
        if to_dict(getattr(hybrid, section)) != to_dict(getattr(plain, section)):
            raise ValueError(
                f"raft-tiny-lq and daflow-tiny-flow differ in {section}: {to_dict(getattr(plain, section))} and "
                f"{to_dict(getattr(hybrid, section))}; a comparison needs the same"
            )
    return Run(model_name(variant, seed), hybrid)


def _read(cls: type, name: str, plan: Plan, seed: int, options: dict[str, Any]) -> Any:
    values = {
        "data.crop": plan.crop,
        "data.options.textures": plan.textures,
        "data.options.seed": seed,  # scenes of its own
        "train.batch": plan.batch,
        "train.seed": seed,
        "train.workers": plan.workers,
        "train.threads": plan.threads,
        "train.log_every": 10,
        "validation.every": 0,
        **options,
    }
    return read_config(cls, name, [f"{key}={json.dumps(value)}" for key, value in values.items()])
