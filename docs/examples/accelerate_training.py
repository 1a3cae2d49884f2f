"""A training loop of your own with accelerate: RAFT on rendered, degraded scenes.

    python docs/examples/accelerate_training.py --steps 200
    accelerate launch docs/examples/accelerate_training.py --steps 200     # several processes, half precision, ...

`daflow train flow` does the same with checkpoints, validation and a model card; this shows that none of it is needed.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from daflow_ext import RAFT
from daflow_ext.datasets import Clip, Scenes, collate, degradations, worker_init
from daflow_ext.train import sequence_loss


def batch(clips: list[Clip]) -> dict[str, torch.Tensor]:
    """Tensors in a dictionary, which accelerate moves to the device; channels first."""
    clip = collate(clips)
    image1, image2 = clip.lq.permute(1, 0, 4, 2, 3)  # [B, T, H, W, 3] to T of [B, 3, H, W]
    return {"image1": image1, "image2": image2, "flow": clip.flow[:, 0].permute(0, 3, 1, 2), "valid": clip.valid[:, 0]}


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 160))
    parser.add_argument("--iters", type=int, default=6)
    args = parser.parse_args(argv)

    accelerator = Accelerator()
    set_seed(0)
    (degrade,) = degradations("level2")
    scenes = Scenes(length=10_000, size=tuple(args.size), frames=2, max_displacement=20.0, degrade=degrade)
    loader = torch.utils.data.DataLoader(scenes, args.batch, shuffle=True, collate_fn=batch, worker_init_fn=worker_init)
    model = RAFT(small=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=1e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    losses = []
    for step, given in zip(range(args.steps), loader, strict=False):
        predictions = model(given["image1"], given["image2"], iters=args.iters)
        loss = sequence_loss(predictions, given["flow"], given["valid"])
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()).mean().item())
        accelerator.print(f"step {step + 1}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
