"""``daflow submit``: predictions on a benchmark's test set, as its server takes them."""

import argparse
import json
import pathlib

from tqdm import tqdm

from ..evaluate.submit import BENCHMARKS, open_parts, write_submission
from . import _data

HELP = "write the upload of a benchmark: Sintel, KITTI, Spring"
DESCRIPTION = """\
Predicts the test set of a benchmark into the folders and formats that its server takes. An interrupted run goes on
where it stopped.

sintel       OUT/{clean,final}/<scene>/frame_0001.flo; then the benchmark's bundler
kitti-2015   OUT/flow/000000_10.png (16 bit), and OUT.zip
kitti-2012   OUT/000000_10.png (16 bit), and OUT.zip
spring       OUT/<scene>/flow_FW_left/flow_FW_left_0001.flo5 (and BW, right); then the benchmark's flow_subsampling"""
EXAMPLE = "daflow submit --model raft-sintel.pth --dataset sintel --root Sintel -o upload"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _data.add_predictor_arguments(parser, iters=32)
    parser.add_argument("--dataset", required=True, choices=list(BENCHMARKS), help="the benchmark")
    parser.add_argument("--root", type=pathlib.Path, metavar="R", help="its folder (default datasets/<its usual name>)")
    parser.add_argument("-o", "--output", metavar="OUT", type=pathlib.Path, required=True, help="folder of the upload")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="loading processes (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    (predictor,) = _data.load_predictors(args)
    parts = open_parts(args.dataset, args.root, predictor.clip)
    with tqdm(total=sum(map(len, parts.values())), unit="pair", disable=None) as bar:
        manifest = write_submission(args.dataset, parts, predictor, args.output, workers=args.workers, step=bar.update)
    if args.json:
        print(json.dumps(manifest, indent=1))
        return 0
    print(f"{args.dataset}: {manifest['files']} flow files of {manifest['model']}; {manifest['note']}")
    if manifest["clipped_values"]:
        print(f"{manifest['clipped_values']} values did not fit KITTI's files and were clipped")
    print(manifest.get("archive", args.output))
    return 0
