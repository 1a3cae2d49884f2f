"""``daflow pseudo``: a teacher's flow as ground truth for video that has none."""

import argparse
import json
import pathlib

from tqdm import tqdm

from ..datasets import Folder
from ..evaluate.pseudo import write_pseudo
from ..flow.formats import SUFFIXES
from . import _data

HELP = "write pseudo ground truth for high-quality video: flow and confidence"
DESCRIPTION = """\
Estimates flow in both directions between neighbouring frames of every folder of frames and every video below INPUT.

OUT/<sequence>/flow/<frame>.png         flow to the next frame (16-bit PNG, rounded to 1/64 pixel; or --format)
OUT/<sequence>/confidence/<frame>.png   255 = going forth and back returns exactly; below 128 = inconsistent or occluded
OUT/<sequence>/flow_backward, confidence_backward   with --backward: from the next frame to this one
OUT/pseudo.json                         teacher, settings, bad items

The data sets `folder` and `youhq` read it with flow_root=OUT. An interrupted run goes on where it stopped."""
EXAMPLE = "daflow pseudo YouHQ --teacher raft-sintel.pth -o YouHQ-flow"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", type=pathlib.Path, help="a folder with frames or videos below it")
    _data.add_predictor_arguments(parser, iters=32, flag="--teacher")
    parser.add_argument("-o", "--output", metavar="OUT", type=pathlib.Path, required=True, help="folder")
    parser.add_argument("--format", choices=list(SUFFIXES), default="png16", help="of the flow (default %(default)s)")
    parser.add_argument("--backward", action="store_true", help="keep the backward flow, too")
    parser.add_argument("--skip-bad", action="store_true", help="count and name pairs that cannot be read, and go on")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="loading processes (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    (predictor,) = _data.load_predictors(args)
    dataset = Folder(args.input, clip=predictor.clip, shorter=True)
    with tqdm(total=len(dataset), unit="pair", disable=None) as bar:
        manifest = write_pseudo(
            dataset,
            predictor,
            args.output,
            file_format=args.format,
            backward=args.backward,
            skip_bad=args.skip_bad,
            workers=args.workers,
            step=bar.update,
        )
    if args.json:
        print(json.dumps(manifest, indent=1))
        return 0
    print(f"{manifest['pairs']} pairs of {manifest['sequences']} sequences, flow of {manifest['teacher']}")
    if manifest["bad"]:
        print(f"bad pairs, left out ({len(manifest['bad'])}):")
        print("\n".join(f"  {name}: {reason}" for name, reason in manifest["bad"].items()))
    print(args.output)
    return 0
