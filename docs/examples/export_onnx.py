"""RAFT as an ONNX file that any runtime reads, checked in onnxruntime.

    pip install "daflow_ext[onnx]"
    python docs/examples/export_onnx.py --weights raft-small.pth --size 440x1024 --iters 12 -o raft-small.onnx

One file is for one size and one number of iterations. Inputs: image1, image2, float32 [1, 3, H, W] in [0, 255]; output:
flow [1, 2, H, W] in pixels.
"""

import argparse

import numpy as np
import onnxruntime
import torch

from daflow_ext import RAFT, get_model


class FlowOfPair(torch.nn.Module):
    """Two images in, one flow out: options become constants of the program."""

    def __init__(self, model: RAFT, iters: int):
        super().__init__()
        self.model, self.iters = model, iters

    def forward(self, image1: torch.Tensor, image2: torch.Tensor) -> torch.Tensor:
        return self.model(image1, image2, iters=self.iters, test_mode=True)[1]


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="raft-tiny-lq", help="a model's name, or RAFT weights")
    parser.add_argument("--size", default="440x1024", help="height x width, multiples of 8")
    parser.add_argument("--iters", type=int, default=12)
    parser.add_argument("-o", "--output", default="raft.onnx")
    args = parser.parse_args(argv)
    height, width = map(int, args.size.split("x"))

    model = get_model(args.weights, backend="reference", memory="on_the_fly")  # plain operators only
    program = FlowOfPair(model, args.iters).eval()
    images = tuple(torch.rand(2, 1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255)
    with torch.no_grad():
        torch.onnx.export(
            program, images, args.output, input_names=["image1", "image2"], output_names=["flow"], dynamo=True
        )
        expected = program(*images).numpy()

    session = onnxruntime.InferenceSession(args.output)
    (flow,) = session.run(["flow"], {"image1": images[0].numpy(), "image2": images[1].numpy()})
    difference = float(np.abs(flow - expected).max())
    print(f"{args.output}: flow {list(flow.shape)}, in onnxruntime within {difference:.1e} px of PyTorch")
    return difference


if __name__ == "__main__":
    main()
