"""Fuzz every reader: ``python -m tests.fuzz [--count 100000] [--seed 0] [--only NAME] [--keep DIR]``; exit code 1 when
something was found."""

import argparse
import pathlib
import sys

from . import campaign
from .readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="inputs in total, or of --only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(READERS))
    parser.add_argument("--first", type=int, default=0, help="first input")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds for one input")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for inputs that show a finding")
    args = parser.parse_args()
    counts = {args.only: args.count} if args.only else campaign.shares(args.count)
    total, failed = 0, False
    print(f"{'reader':14} {'inputs':>7} {'read':>7} {'refused':>7} {'seconds':>7} {'slowest':>8}")
    with campaign.one_thread():
        for name, count in counts.items():
            one = campaign.run(name, args.seed, args.first, count, limit=args.limit, keep=args.keep)
            print(f"{name:14} {one.inputs:7} {one.accepted:7} {one.refused:7} {one.seconds:7.1f} {one.slowest:7.3f}s")
            for what, times in one.findings.most_common():
                print(f"    {times} x {what}, first at input {one.examples[what]}")
            sys.stdout.flush()
            total += one.inputs
            failed = failed or bool(one.findings)
    print(f"{total} inputs, {'findings above' if failed else 'nothing found'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
