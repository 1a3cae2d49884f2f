"""torchvision's RAFT with our correlation: one attribute replaced, on a model that is already built.

pip install torchvision
python docs/examples/torchvision_raft.py --pretrained      # downloads torchvision's weights
"""

import argparse

import torch
from torchvision.models.optical_flow import Raft_Small_Weights, raft_small

from daflow_ext.correlation.adapters import TorchvisionCorrBlock


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrained", action="store_true")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    model = raft_small(weights=Raft_Small_Weights.DEFAULT if args.pretrained else None).eval()
    image1, image2 = torch.rand(2, 1, 3, 136, 168, generator=torch.Generator().manual_seed(1)) * 2 - 1  # [-1, 1]
    with torch.no_grad():
        theirs = model(image1, image2, num_flow_updates=6)[-1]
        model.corr_block = TorchvisionCorrBlock(num_levels=4, radius=3)  # raft_large: radius=4
        ours = model(image1, image2, num_flow_updates=6)[-1]
    difference = (ours - theirs).abs().max().item()
    print(f"flow {list(ours.shape)}; ours differs from theirs by at most {difference:.1e} px")
    return difference


if __name__ == "__main__":
    main()
