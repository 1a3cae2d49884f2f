"""The full-size transformer (2.7 B parameters) on this machine: build, save, load strictly, run once with early exit.

python -m benchmarks.dit4sr            random weights in bfloat16, 3 frames of 128x128, taps of DA-Flow's layers
python -m benchmarks.dit4sr --device cuda --size 512

Needs about 7 GB of memory and 6 GB of disk in the temporary folder.
"""

import argparse
import json
import pathlib
import resource
import tempfile
import time

import torch

from daflow_ext.features.dit4sr import DiT4SRTransformer2DModel

TAP_LAYERS = (3, 13, 16, 17)
TEXT_TOKENS = 154


def build(folder: pathlib.Path) -> int:
    """Save a randomly initialised full-size model with all 1383 tensors; returns the number of tensors."""
    with torch.device("meta"):
        model = DiT4SRTransformer2DModel(keep_unused_attn2_text=True)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "to_k_control" in name:
            tensor.zero_()  # as in the checkpoints of lq_key_mode="hq_renorm"
        elif tensor.dim() == 1:
            tensor.fill_(1.0 if "norm_" in name and name.endswith("weight") else 0.0)
        else:
            tensor.normal_(std=0.02, generator=generator)
    model.save_pretrained(folder)
    return len(model.state_dict())


@torch.no_grad()
def run(folder: pathlib.Path, *, frames: int = 3, size: int = 128, device: str = "cpu") -> dict:
    """Load strictly and run one evaluation with early exit."""
    start = time.perf_counter()
    model = DiT4SRTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16, keep_unused_attn2_text=True)
    loaded = time.perf_counter() - start
    model = model.eval().to(device)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(device, torch.bfloat16)

    side = size // 8
    arguments = (
        normal(1, frames, 16, side, side), normal(1, frames, 16, side, side), normal(1, TEXT_TOKENS, 4096),
        normal(1, 2048), torch.tensor(1000.0, device=device),
    )  # fmt: skip
    start, cpu = time.perf_counter(), time.process_time()
    output = model(*arguments, tap_layers=TAP_LAYERS, early_exit=True)
    if device != "cpu":
        torch.cuda.synchronize()
    tokens = (side // 2) ** 2
    for taps in (output.queries, output.keys):
        for layer in TAP_LAYERS:
            if taps[layer].shape != (1, frames, tokens, 1536) or not bool(taps[layer].isfinite().all()):
                raise RuntimeError(f"tap of layer {layer} is {list(taps[layer].shape)} or not finite")
    return {
        "tensors": len(model.state_dict()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "frames": frames,
        "size": size,
        "load_seconds": round(loaded, 1),
        "forward_seconds": round(time.perf_counter() - start, 2),
        "forward_cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, help="keep the model there (reused if present)")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--size", type=int, default=128, help="side of the frames in pixels")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        if not (folder / "config.json").is_file():
            build(folder)
        if not args.build_only:
            print(json.dumps(run(folder, frames=args.frames, size=args.size, device=args.device), indent=2))


if __name__ == "__main__":
    main()
