"""Training steps of the small configurations: seconds for the step itself and for making its clips.

    python -m benchmarks.training --quick

Apart from ``benchmarks.run``: it needs the extras ``train`` and ``restoration``.
"""

import argparse
import functools
from collections.abc import Iterator

import torch

from daflow_ext.train import FlowConfig, LiftConfig, flow, lift, read_config
from daflow_ext.train.data import loader

from . import timing

OP = "training"
STAGES = {
    "raft-tiny-lq": (FlowConfig, flow),
    "daflow-tiny-flow": (FlowConfig, flow),
    "daflow-tiny-lift": (LiftConfig, lift),
}


def measure(quick: bool, device: str) -> Iterator[timing.Record]:
    """Procedural textures, so that nothing but this package is needed."""
    for name, (cls, module) in STAGES.items():
        overrides = ["validation.every=0", "data.options={textures: procedural, max_displacement: 40}"]
        config = read_config(cls, name, overrides)
        stage, clips = module.build(config)
        stage.to(device).train()
        stage.place(torch.device(device))
        batch = {name: x.to(device) for name, x in _clips(clips, config.train.batch, 0).items()}
        _gate(name, stage, batch)
        calls = {
            "step": functools.partial(_step, stage, batch),
            "clips": functools.partial(_clips, clips, config.train.batch, 1),
        }
        times = timing.interleaved(calls, repeats=3 if quick else 7, device=device)
        height, width = config.data.crop
        for what, one in times.items():
            yield timing.Record(
                OP,
                f"{name}, {what}, {config.train.batch} clips of {config.data.frames} frames {height}x{width}",
                one.median,
                "s CPU" if device == "cpu" else "s",
                details=one.milliseconds(),
            )


def _clips(clips: torch.utils.data.Dataset, batch: int, number: int) -> dict[str, torch.Tensor]:
    one = loader(clips, done=number, total=number + 1, batch=batch, rank=0, world=1, workers=0)
    return next(iter(one))


def _step(stage: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(0)
    loss, _ = stage(batch)
    loss.backward()
    return loss.detach()


def _gate(name: str, stage: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Equal seeds give equal losses, and they are finite."""
    losses = [_step(stage, batch) for _ in range(2)]
    if not (torch.equal(*losses) and losses[0].isfinite()):
        raise timing.WrongResultError(f"{OP} {name}: one seed gave the losses {losses}; not timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    with timing.threads(1):
        for record in measure(args.quick, args.device):
            print(record.json())


if __name__ == "__main__":
    main()
