"""DA-Flow stage by stage, as `daflow benchmark` measures it; and the bytes per pixel behind memory budgets.

python -m benchmarks.run --op daflow      daflow-tiny against its reference backend, and its stages
python -m benchmarks.daflow --memory      growth of memory per pixel of a tile, for daflow_ext/models/tile_memory.py
"""

import argparse
from collections.abc import Callable, Iterator

import torch

from daflow_ext import get_model
from daflow_ext.models.config import CONFIGURATIONS
from daflow_ext.models.stages import Stage, StageMeter

from . import roofline, timing

OP = "daflow"
MODEL, ITERS = "daflow-tiny", 12
SIDES = (256, 384, 512)  # of the tiles whose memory is measured
WARM = 64
GOAL = 1.5  # times faster than the reference backend


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Speed-up over the reference backend, and milliseconds of every stage; both must agree first.

    Three frames, random weights.
    """
    side = 96 if quick else 256
    pipe = get_model(MODEL, pretrained=False).to(device)
    frames = torch.randint(0, 256, (1, 3, 3, side, side), generator=torch.Generator().manual_seed(0)).byte()

    def flow() -> torch.Tensor:
        return pipe(frames, iters=ITERS, generator=torch.Generator().manual_seed(0)).flows

    def flow_by(backend: str) -> torch.Tensor:
        pipe.set_backend(backend)
        return flow()

    timing.gate("pipeline", flow_by("auto"), flow_by("reference"), atol=0.05)
    ways = {backend: lambda backend=backend: flow_by(backend) for backend in ("auto", "reference")}
    work, ceilings = roofline.count(ways["auto"]), roofline.Ceilings.of(device)
    times = timing.interleaved(ways, repeats=3, warmup=0, device=device)
    case = f"{MODEL} 3x{side}x{side}, {ITERS} iterations"
    yield timing.Record(
        OP,
        case,
        times["reference"].median / times["auto"].median,
        "x reference",
        goal=None if quick else GOAL,
        details={**work.details(times["auto"], ceilings), "reference": work.share(times["reference"], ceilings)},
    )
    pipe.set_backend("auto")
    for (stage, *_), time in stage_times(pipe, flow, repeats=3):
        unit = "ms" if stage.cpu_seconds is None else "ms CPU"
        details = {**time.milliseconds(), "calls": stage.calls}
        yield timing.Record(OP, f"{case}: {stage.name}", 1e3 * time.median, unit, details=details)


def stage_times(
    pipe: torch.nn.Module, call: Callable[[], object], repeats: int
) -> Iterator[tuple[tuple[Stage, ...], timing.Timing]]:
    """Every stage as each repetition measured it, and its time: of the CPU, or by the clock on a GPU."""
    runs = []
    for _ in range(repeats):
        with StageMeter(pipe, memory=False) as meter:
            call()
        runs.append(meter.rows())
    for stages in zip(*runs, strict=True):
        yield stages, timing.Timing.of([seconds(stage) for stage in stages])


def seconds(stage: Stage) -> float:
    return stage.milliseconds / 1e3 if stage.cpu_seconds is None else stage.cpu_seconds


def prepare(stage: str, model: str, side: int, device: str = "cpu") -> Callable[[], object]:
    """What ``timing.peak_bytes`` measures: one call of a stage on a square tile, libraries and weights warm."""
    pipe = _shallow(model)
    config = pipe.transformer.config
    width, dtype = config.num_attention_heads * config.attention_head_dim, pipe.transformer.dtype

    def call_at(pixels: int) -> Callable[[], object]:
        if stage == "vae":
            image = (torch.rand(1, 3, pixels, pixels) * 2 - 1).to(pipe.vae.dtype)
            return lambda: pipe.vae.encode(image)
        if stage == "transformer":
            latents = torch.randn(1, 3, config.in_channels, pixels // 8, pixels // 8).to(dtype)
            text, timestep = pipe.prompt.batch(1, latents), torch.tensor(1000.0)
            layers = tuple(pipe.flow.config.tap_layers)
            options = {"tap_layers": layers, "early_exit": True, "share_text": True}
            return lambda: pipe.transformer(latents, latents.clone(), *text, timestep, **options)
        images = [torch.rand(1, 3, pixels, pixels) * 255 for _ in range(2)]
        taps = [[torch.randn(1, (pixels // 16) ** 2, width).to(dtype) for _ in range(4)] for _ in range(2)]
        return lambda: pipe.flow(*images, *taps, iters=2, test_mode=True)

    torch.set_grad_enabled(False)
    call_at(WARM)()
    return call_at(side)


def _shallow(model: str):
    """The model with four layers, as wide as it is; depth adds no memory to a tile. The large one in bfloat16."""
    import unittest.mock

    configuration = {part: dict(options) for part, options in CONFIGURATIONS[model].items()}
    dual = (0, 1) if model == "daflow" else ()
    configuration["transformer"] |= {"num_layers": 5, "dual_attention_layers": dual}
    configuration["flow"] |= {"tap_layers": (1, 2, 3, 4)}
    with unittest.mock.patch.dict(CONFIGURATIONS, {model: configuration}):
        pipe = get_model(model, pretrained=False, torch_dtype=torch.bfloat16 if model == "daflow" else torch.float32)
    pipe.flow.float()
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", required=True)
    parser.add_argument("--model", nargs="+", default=["daflow-tiny", "daflow"], choices=list(CONFIGURATIONS))
    args = parser.parse_args()
    print(f"{timing.environment()['cpu']}, torch {torch.__version__}, bytes per pixel of tiles of {SIDES} pixels")
    for model in args.model:
        for stage in ("vae", "transformer", "flow"):
            sides = SIDES if model == "daflow-tiny" else SIDES[:2]
            found = [
                timing.peak_bytes("benchmarks.daflow:prepare", stage=stage, model=model, side=side) / side**2
                for side in sides
            ]
            print(f"{model:<12} {stage:<12} {' '.join(f'{value:8.1f}' for value in found)}", flush=True)


if __name__ == "__main__":
    main()
