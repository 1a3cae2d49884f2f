"""A model of ptlflow with our correlation: ptlflow loads, pads and scores, the volume goes.

    pip install ptlflow
    python docs/examples/ptlflow_model.py --model raft_small --checkpoint things

ptlflow keeps a copy of the correlation blocks per model, in ptlflow/models/MODEL/corr.py, which its network file
imports by name; the names are replaced there. Without ptlflow, a small model with its interface stands in.
"""

import argparse
import importlib
import importlib.util
import pathlib
import sys

import torch

import daflow_ext
from daflow_ext.correlation.adapters import get_corr_block

STAND_INS = pathlib.Path(__file__).resolve().parent / "stand_ins"
REPLACEMENTS = {
    "CorrBlock": daflow_ext.CorrBlock,
    "AlternateCorrBlock": daflow_ext.AlternateCorrBlock,
    "get_corr_block": get_corr_block,  # newer versions of ptlflow
}


def use_our_correlation(network: str = "ptlflow.models.raft.raft") -> list[str]:
    """Replace what the network file imported from its corr.py; the names that were replaced."""
    module = importlib.import_module(network)
    replaced = [name for name in REPLACEMENTS if hasattr(module, name)]
    for name in replaced:
        setattr(module, name, REPLACEMENTS[name])
    return replaced


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="raft_small")
    parser.add_argument("--checkpoint", help="for example things; random weights without it")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("ptlflow") is None:
        sys.path.insert(0, str(STAND_INS))
    import ptlflow

    torch.manual_seed(0)
    model = ptlflow.get_model(args.model, args.checkpoint).eval()
    inputs = {"images": torch.rand(1, 2, 3, 136, 168, generator=torch.Generator().manual_seed(1))}  # BGR in [0, 1]
    with torch.no_grad():
        theirs = model(inputs)["flows"]
        replaced = use_our_correlation()
        ours = model(inputs)["flows"]
    difference = (ours - theirs).abs().max().item()
    print(f"replaced {', '.join(replaced)}; flow {list(ours.shape)} differs by at most {difference:.1e} px")
    if not replaced:
        raise SystemExit("this version of ptlflow imports its correlation under other names; replace those")
    return difference


if __name__ == "__main__":
    main()
