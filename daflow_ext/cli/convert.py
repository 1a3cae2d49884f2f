"""``daflow convert``: RAFT weights between the official names, torchvision's and ours."""

import argparse
import pathlib

from ..models import RAFT, weights

HELP = "convert RAFT weights (official .pth, torchvision, safetensors) to another file"
EXAMPLE = "daflow convert raft-sintel.pth -o raft-sintel.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", type=pathlib.Path, help="weights file, read without running its code")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=pathlib.Path, required=True, help=".safetensors, or .pth for torch.load"
    )
    parser.add_argument(
        "--to",
        choices=weights.NAMINGS,
        default="daflow",
        help="names inside OUT: daflow (bare official names), official (with 'module.', as the RAFT scripts expect) or "
        "torchvision (raft_large / raft_small); default %(default)s",
    )


def run(args: argparse.Namespace) -> int:
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        raise ValueError(f"{args.output} is the input itself; give another output")
    model = RAFT.from_pretrained(args.input)
    weights.write(model.state_dict(), model.config, args.output, args.to)
    print(f"{args.output}: RAFT-{'small' if model.small else 'large'}, {args.to} names")
    return 0
