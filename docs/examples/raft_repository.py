"""The RAFT repository with our correlation, without editing it: weights and results stay, the volume goes.

    python docs/examples/raft_repository.py --repository RAFT --weights raft-small.pth

Its raft.py says `from corr import CorrBlock, AlternateCorrBlock`; both names are replaced before it does. The same
works for its descendants. Without --repository, a small network with RAFT's interface stands in.
"""

import argparse
import importlib
import pathlib
import sys
from types import ModuleType

import torch

import daflow_ext

STAND_IN = pathlib.Path(__file__).resolve().parent / "stand_ins/raft_repository"


def load_repository(core: pathlib.Path, *, ours: bool) -> ModuleType:
    """The repository's module `raft`, freshly imported, with its own correlation or with ours."""
    for name in ("raft", "corr"):
        sys.modules.pop(name, None)
    sys.path.insert(0, str(core))
    try:
        corr = importlib.import_module("corr")
        if ours:
            corr.CorrBlock = daflow_ext.CorrBlock
            corr.AlternateCorrBlock = daflow_ext.AlternateCorrBlock
        return importlib.import_module("raft")
    finally:
        sys.path.remove(str(core))


def build(core: pathlib.Path, weights: str | None, *, ours: bool) -> torch.nn.Module:
    args = argparse.Namespace(small=True, mixed_precision=False, alternate_corr=False)
    torch.manual_seed(0)
    model = load_repository(core, ours=ours).RAFT(args)
    if weights is not None:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=pathlib.Path, help="a checkout of princeton-vl/RAFT")
    parser.add_argument("--weights", help="its raft-small.pth")
    args = parser.parse_args(argv)
    core = STAND_IN if args.repository is None else args.repository / "core"

    generator = torch.Generator().manual_seed(1)
    image1, image2 = torch.rand(2, 1, 3, 136, 168, generator=generator) * 255
    flows = {}
    for ours in (False, True):
        with torch.no_grad():
            _, flows[ours] = build(core, args.weights, ours=ours)(image1, image2, iters=6, test_mode=True)
    difference = (flows[True] - flows[False]).abs().max().item()
    print(f"flow up to {flows[True].abs().max():.2f} px; ours differs from theirs by at most {difference:.1e} px")
    return difference


if __name__ == "__main__":
    main()
