"""Run the experiment, or go on with it; then write what there is to report."""

import argparse
import dataclasses
import pathlib
import shlex
import sys

from tqdm import tqdm

from daflow_ext.frames._files import atomic_path

from .. import timing
from . import __doc__ as description
from . import report
from .plan import LEVELS, Plan
from .work import RATIO, Budget, Stopped, device_name, experiment, held_out, open_scores, open_zero_shot, write_json

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
QUICK = {
    "steps": 2,
    "dit_steps": 2,
    "seeds": 1,
    "clips": 2,
    "zero_shot_clips": 1,
    "batch": 1,
    "crop": (48, 64),
    "textures": ("procedural",),
    "iters": 2,
    "restore_steps": 1,
    "zero_shot_steps": 2,
    "workers": 0,
}


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, also if the time was over before the end."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.save and options.quick:
        parser.error("--save is for results; --quick gives none")
    given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(Plan)}
    try:
        plan = Plan(**(QUICK if options.quick else {}) | {name: x for name, x in given.items() if x is not None})
    except ValueError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        experiment(plan, options.out, Budget(options.max_minutes), tqdm.write)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on")
    content = _content(plan, options.out, shlex.join(["python", "-m", "benchmarks.degradation_aware", *arguments]))
    targets = [options.out / "report"]
    if options.save and content["success"] is not None:
        targets.append(RESULTS / f"degradation-aware-{content['environment']['date'][:10]}")
    for target in targets:
        write_json(target.with_suffix(".json"), content)
        with atomic_path(target.with_suffix(".md")) as path:
            path.write_text(report.markdown(content))
    for name, one in content["seconds"].items():
        print(f"{name:14} {one['steps']:6} steps {one['seconds']:9.1f} s{'' if one['finished'] else '  unfinished'}")
    print(content["sentence"])
    print(targets[-1].with_suffix(".md"))
    return 0


def _content(plan: Plan, out: pathlib.Path, command: str) -> dict:
    records, scenes = open_scores(plan, out), held_out(plan, LEVELS[0])
    items = [scenes.item_name(index) for index in range(plan.clips)]
    differences = report.compare(plan, records, items)
    decided = report.verdict(differences)
    return {
        "sentence": report.sentence(plan, decided),
        "success": None if plan.quick else decided,
        "command": command,
        "environment": timing.environment(device_name()),
        "plan": dataclasses.asdict(plan),
        "differences": differences,
        "rows": report.table_rows(plan, records, items),
        "zero_shot": report.zero_shot_tables(open_zero_shot(plan, out)),
        "seconds": report.training_times(out),
        "step_ratio": report.read_json(out / RATIO),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.degradation_aware",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Plan()
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of all runs; work in it is continued")
    parser.add_argument("--max-minutes", type=float, metavar="M", help="stop cleanly after this long")
    parser.add_argument("--quick", action="store_true", default=None, help="everything, with two steps each")
    parser.add_argument(
        "--save", action="store_true", help="also write benchmarks/results/degradation-aware-<date>, if decided"
    )
    parser.add_argument("--raft", metavar="FILE", help="RAFT-small weights that V1 starts from (default: random)")
    for name, what in (
        ("steps", "of V1 to V5"),
        ("dit_steps", "of each stage of a transformer"),
        ("seeds", "of V2 to V5"),
        ("clips", "held out, one pair each"),
        ("zero_shot_clips", "of these, for the table of layers and steps"),
        ("batch", "clips per training step"),
        ("workers", "processes that make clips"),
        ("threads", "of the computation"),
    ):
        text = f"{what} (default {getattr(default, name)})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="of all clips (default 128 160)")
    parser.add_argument(
        "--textures", nargs="+", metavar="T", help="procedural, photos, folders (default the first two)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
