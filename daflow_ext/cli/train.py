"""``daflow train``: stage 1 (lift) and stage 2 (flow) from a configuration."""

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Callable

from .._extras import require_diffusers, require_training

HELP = "train a flow network, or lift the restoration transformer to clips"
DESCRIPTION = """\
Trains from a configuration: a name that comes with the package or a YAML file, changed by --set section.key=value.

OUT/model.safetensors  the weights      OUT/README.md    the model card, written from the run
OUT/checkpoint.pt      to go on from    OUT/log.jsonl    losses and validation    OUT/pictures/    validation clips

The same command goes on where a run was stopped (SIGTERM, train.max_minutes) or killed, with the very same losses.
Several processes: torchrun --nproc_per_node 8 $(command -v daflow) train ..."""
EXAMPLE = "daflow train flow --config raft-tiny-lq -o runs/lq --set train.steps=20 train.batch=2 validation.clips=2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=["flow", "lift"], help="flow: stage 2; lift: stage 1")
    parser.add_argument("--config", required=True, metavar="C", help="name or YAML file")
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--init", metavar="WEIGHTS", help="start from these weights (model.init)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override, as train.lr=1e-4"
    )
    parser.add_argument("--restart", action="store_true", help="begin anew, dropping a checkpoint in OUT")


def run(args: argparse.Namespace) -> int:
    require_training()
    from .. import train

    overrides = args.set + ([f"model.init={json.dumps(args.init)}"] if args.init else [])
    config = train.read_config(train.LiftConfig if args.stage == "lift" else train.FlowConfig, args.config, overrides)
    stage, clips = _builder(args.stage)(config)
    command = shlex.join(["daflow", *sys.argv[1:]])
    trainer = train.Trainer(stage, clips, config, args.out, restart=args.restart, command=command)
    if trainer.step and trainer.main:
        print(f"going on after step {trainer.step} of {args.out}")
    outcome = trainer.run()
    if trainer.main:
        end = {"finished": "finished", "time": "stopped by train.max_minutes", "signal": "stopped by SIGTERM"}
        print(f"{end[outcome.reason]} at step {outcome.step} of {config.train.steps}; {args.out}")
    return 143 if outcome.reason == "signal" else 0


def _builder(stage: str) -> Callable:
    if stage == "lift":
        require_diffusers("daflow train lift")
        from ..train import lift

        return lift.build
    from ..train import flow

    return flow.build
