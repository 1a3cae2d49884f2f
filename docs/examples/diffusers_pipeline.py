"""DA-Flow as a diffusers pipeline: saved, loaded, a part exchanged, run.

python docs/examples/diffusers_pipeline.py                 # daflow-tiny with random weights
python docs/examples/diffusers_pipeline.py --model FOLDER  # a trained pipeline
"""

import argparse
import pathlib
import tempfile

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from daflow_ext import DAFlowPipeline, get_model


def main(argv: list[str] | None = None) -> torch.Tensor:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, help="a pipeline's folder")
    args = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            torch.manual_seed(0)
            get_model("daflow-tiny", pretrained=False).save_pretrained(folder)
        pipe = DAFlowPipeline.from_pretrained(args.model or folder)
        print({name: type(part).__name__ for name, part in pipe.components.items()})

        # Any part can be exchanged, as in every diffusers pipeline: here the scheduler, for other noise levels.
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=1.0)
        pipe = DAFlowPipeline(**{**pipe.components, "scheduler": scheduler})
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")

    generator = torch.Generator().manual_seed(0)
    frames = (torch.rand(1, 3, 3, 64, 96, generator=generator) * 255).byte()  # [B, F, 3, H, W]
    output = pipe(frames, iters=4, generator=generator, bidirectional=True)
    print(f"flows {list(output.flows.shape)}, occluded {output.occlusion.float().mean():.0%}")
    return output.flows


if __name__ == "__main__":
    main()
