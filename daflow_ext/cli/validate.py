"""``daflow validate``: models on a data set, clean and degraded, in one table."""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tqdm import tqdm

from ..datasets import CLEAN, FlowDataset, dataset_class
from ..evaluate import (
    Predictor,
    RecordFile,
    csv_table,
    differences,
    robustness_means,
    screen_table,
    summarize,
    validate,
)
from ..evaluate.summary import Row
from ..flow import Report
from ..flow.metrics import PROTOCOLS
from ..frames._files import atomic_path
from ..frames.degrade.evaluation_set import versions
from . import _data
from ._page import check_page_name, write_page

HELP = "score models on a data set, clean and degraded"
DESCRIPTION = """\
Scores one or several models on a data set, with clean frames and with degraded ones, in one table.

OUT/records.jsonl   one line per model, level and item; an interrupted run goes on where it stopped
OUT/summary.json    every number, with settings, versions and bad items
OUT/table.csv       one line per model, level and stratum
OUT/worst/          the pairs with the largest error as pictures (--worst)

--report PAGE.html  one page that needs no network: bars per level, the table, and the pairs of --worst to step through

EPE is in pixels; 1px, 3px, 5px and Fl are percent of bad pixels, WAUC percent (100 is best). Means are those that the
benchmark publishes; summary.json and table.csv have both, over pixels and over images. The 95 % interval of EPE
comes from resampling whole sequences.

levels: clean, 1 .. 5 (mild to worst), levels (all five), a preset (realbasicvsr, star), a corruption as fog or fog:2,
corruptions (all twenty)."""
EXAMPLE = "daflow validate --model raft-small.pth --dataset sintel-clean --root Sintel --degrade 3 -o scores"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _data.add_predictor_arguments(parser, iters=20, several=True)
    _data.add_dataset_arguments(parser)
    parser.add_argument("--degrade", nargs="+", default=[], metavar="LEVEL", help="levels, beside the clean frames")
    parser.add_argument(
        "--lq-root", type=pathlib.Path, metavar="DIR", help="frames made by `daflow degrade`, as level lq"
    )
    parser.add_argument(
        "--lq-window", metavar="N", help="frames degraded together, a number or 'sequence' (default: the data set's)"
    )
    parser.add_argument("--no-clean", action="store_true", help="leave the clean frames out")
    parser.add_argument(
        "--robustness", action="store_true", help="compare with the prediction on the clean frames, too"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the degradations (default %(default)s)")
    parser.add_argument("-o", "--output", metavar="OUT", type=pathlib.Path, default="daflow_validation", help="folder")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="score every N-th item (default all)")
    parser.add_argument("--limit", type=int, metavar="N", help="score at most N items")
    parser.add_argument("--worst", type=int, default=0, metavar="K", help="pictures of the K worst pairs per row")
    parser.add_argument("--report", type=pathlib.Path, metavar="PAGE", help="write one HTML page of all of it")
    parser.add_argument("--skip-bad", action="store_true", help="count and name items that cannot be read, and go on")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="loading processes (default %(default)s)")
    parser.add_argument("--restart", action="store_true", help="discard the results in OUT")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    for name in ("every", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    check_page_name(args.report)
    levels = _data.chosen_degradations(([] if args.no_clean else [CLEAN]) + args.degrade)
    if args.lq_root is not None:
        levels["lq"] = None
    if not levels:
        raise ValueError("--no-clean leaves nothing to score; add --degrade or --lq-root")
    predictors = _data.load_predictors(args)
    window = _window(args)
    make = _data.opener(args, clip=max(one.clip for one in predictors), shorter=True)

    def open_level(level: str) -> FlowDataset:
        if level == "lq":
            return make(lq_root=args.lq_root)
        return _data.open_for(make, levels[level], lq_window=window, seed=args.seed)

    def indices(dataset: FlowDataset) -> range:
        return range(0, len(dataset), args.every)[: args.limit]

    dataset = make()
    items = [dataset.item_name(index) for index in indices(dataset)]
    records = _records(args, dataset, window)
    with tqdm(total=len(items) * len(levels) * len(predictors), unit="pair", disable=None) as bar:

        def step(text: str) -> None:
            bar.set_description(text, refresh=False)
            bar.update()

        validate(
            open_level,
            list(levels),
            predictors,
            records,
            indices=indices,
            workers=args.workers,
            compare_clean=args.robustness,
            skip_bad=args.skip_bad,
            step=step,
        )
    names = [one.name for one in predictors]
    rows = summarize(records, names, list(levels), items, dataset.protocol)
    summary = {
        "settings": records.settings,
        "protocol": PROTOCOLS[dataset.protocol].note,
        "models": {one.name: one.identity for one in predictors},
        "versions": versions(),
        "rows": [row.to_dict() for row in rows],
        "differences": differences(records, names, list(levels), items, dataset.protocol),
        "robustness": robustness_means(rows),
    }
    _write(args.output / "summary.json", json.dumps(summary, indent=1))
    _write(args.output / "table.csv", csv_table(rows))
    report = None
    if args.report is not None:
        from ..evaluate.page import validation_page

        report = validation_page(rows, summary, dataset.protocol, degraded=set(levels) != {CLEAN})
    pictures = _pictures(args, records, open_level, list(levels), predictors, items, report)
    if report is not None:
        write_page(report, args.report)
    print(json.dumps(summary, indent=1) if args.json else _text(args, rows, summary, dataset.protocol, pictures))
    return 0


def _window(args: argparse.Namespace) -> int | str:
    if args.lq_window is None:
        return dataset_class(args.dataset).lq_window
    if args.lq_window != "sequence" and not args.lq_window.isdigit():
        raise ValueError(f"--lq-window must be a number or 'sequence', got {args.lq_window!r}")
    return args.lq_window if args.lq_window == "sequence" else int(args.lq_window)


def _records(args: argparse.Namespace, dataset: FlowDataset, window: int | str) -> RecordFile:
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "records.jsonl"
    if args.restart:
        path.unlink(missing_ok=True)
    settings = {
        "dataset": args.dataset,
        "root": str(dataset.root.resolve()),
        "split": dataset.split,
        "options": sorted(args.option),
        "clip": dataset.clip,
        "protocol": dataset.protocol,
        "seed": args.seed,
        "lq_window": window,
        "lq_root": None if args.lq_root is None else str(args.lq_root.resolve()),
        "robustness": args.robustness,
    }
    return RecordFile(path, settings)


def _write(path: pathlib.Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def _pictures(
    args: argparse.Namespace,
    records: RecordFile,
    open_level: Callable[[str], FlowDataset],
    levels: Iterable[str],
    predictors: Sequence[Predictor],
    items: Sequence[str],
    report: Report | None,
) -> list[pathlib.Path]:
    if not args.worst:
        return []
    from ..evaluate.pictures import file_name, worst_items, write_worst

    folders = []
    for level in levels:
        dataset = open_level(level)
        indices = {dataset.item_name(index): index for index in range(len(dataset))}
        for predictor in predictors:
            worst = worst_items(records, predictor.name, level, items, args.worst)
            if worst:
                folder = args.output / "worst" / f"{file_name(predictor.name)}-{file_name(level)}"
                write_worst(folder, dataset, predictor, worst, indices, report=report, level=level)
                folders.append(folder)
    return folders


def _text(
    args: argparse.Namespace, rows: Sequence[Row], summary: dict[str, Any], protocol: str, pictures: list[pathlib.Path]
) -> str:
    lines = [f"{args.dataset}, {PROTOCOLS[protocol].note}", screen_table(rows, protocol)]
    for one in summary["differences"]:
        bounds = one["interval"]
        shown = f" (95 % {bounds[0]:+.3f}..{bounds[1]:+.3f})" if bounds else ""
        lines.append(
            f"{one['level']}: EPE of {one['model']} minus {one['reference']}: {one['epe_difference']:+.3f}{shown}, "
            f"{one['items']} items"
        )
    for model, mean in summary["robustness"].items():
        lines.append(
            f"{model}: mean of {mean['levels']} levels against its prediction on clean frames: R_EPE "
            f"{mean['robustness_epe']:.3f} px, R_1px {mean['robustness_1px']:.2f} %, R_Fl {mean['robustness_fl']:.2f} %"
        )
    bad = {item: reason for row in rows for item, reason in row.bad.items()}
    if bad:
        lines.append(f"bad items, not scored ({len(bad)}):")
        lines += [f"  {item}: {reason}" for item, reason in bad.items()]
    lines += [str(folder) for folder in pictures]
    lines += [str(path) for path in (args.report, args.output / "summary.json") if path is not None]
    return "\n".join(lines)
