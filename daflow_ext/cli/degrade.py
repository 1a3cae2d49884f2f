"""``daflow degrade``: low-quality frames from an image, a folder, a video or a whole data set, with a manifest."""

import argparse
import dataclasses
import json
import pathlib
import statistics
import textwrap
from collections.abc import Mapping

from tqdm import tqdm

from ..frames.degrade import CORRUPTIONS, LEVELS, PRESETS, SEVERITIES, get_config
from ..frames.degrade import evaluation_set as sets
from ..frames.degrade.config import CODEC_SCOPES, PARAM_MODES

HELP = "make low-quality frames from an image, a folder of frames or a video"
DESCRIPTION = f"""\
Makes low-quality frames whose motion is that of the input: blur, resize, noise, JPEG and video compression, twice, to a
quarter of the size, then back to full size (a preset or a level), or one corruption of RobustSpring.

INPUT is an image, a video, a folder of frames, or a tree of such folders and videos. Each clip becomes a folder of PNG
files under OUT, named as in INPUT, and OUT/manifest.json keeps every parameter, the library versions, the bits
per pixel spent, and hashes. Equal seeds and versions give equal pixels, whatever the number of workers. The same
command goes on where a run ended, after the last whole clip.

levels: 1 (mild) .. 5 (worst): every strength is drawn from that fifth of the recipe's range.
corruptions:
{textwrap.fill(", ".join(sorted(CORRUPTIONS)), 120, initial_indent="  ", subsequent_indent="  ")}"""
EXAMPLE = "daflow degrade clip -o clip_lq --level 3 --seed 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="?", metavar="INPUT", type=pathlib.Path, help="image, folder or video")
    parser.add_argument("-o", "--output", metavar="OUT", type=pathlib.Path, help="a new folder")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--preset", choices=list(PRESETS), help="a named recipe (default realbasicvsr)")
    what.add_argument("--level", type=int, choices=LEVELS, help="a severity level")
    what.add_argument(
        "--corruption", metavar="NAME", choices=sorted(CORRUPTIONS), help="a single corruption, listed above"
    )
    what.add_argument(
        "--remake", metavar="MANIFEST", type=pathlib.Path, help="the settings of this set, then compare with it"
    )
    what.add_argument(
        "--check", metavar="MANIFEST", type=pathlib.Path, help="compare a set with its manifest, make nothing"
    )
    parser.add_argument("--severity", type=int, choices=SEVERITIES, help="of --corruption (default 3)")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="default 0; every clip derives its own from it and its name"
    )
    parser.add_argument(
        "--param-mode", choices=PARAM_MODES, help="parameters over time: one draw, a walk, or one per frame"
    )
    parser.add_argument(
        "--codec-scope", choices=CODEC_SCOPES, help="what the video encoder sees: clip, frame by frame, none"
    )
    parser.add_argument("--no-upscale", action="store_true", help="keep the small frames instead of enlarging them")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes, one clip each (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _settings(args: argparse.Namespace) -> sets.Settings:
    recipe_only = [
        ("--param-mode", args.param_mode),
        ("--codec-scope", args.codec_scope),
        ("--no-upscale", args.no_upscale),
    ]
    others = [("--severity", args.severity), ("--seed", args.seed is not None)]
    given = [name for name, value in recipe_only + others if value]
    if args.remake is not None:
        if given:
            raise ValueError(f"--remake takes its settings from the manifest; leave out {', '.join(given)}")
        return sets.Settings.from_dict(sets.read_manifest(args.remake)["settings"])
    seed = args.seed or 0
    if args.corruption is not None:
        wrong = [name for name, value in recipe_only if value]
        if wrong:
            raise ValueError(f"--corruption keeps size and time; leave out {', '.join(wrong)}")
        return sets.Settings(corruption=args.corruption, severity=args.severity or 3, seed=seed)
    if args.severity is not None:
        raise ValueError("--severity belongs to --corruption; recipes have --level")
    config = get_config(args.level or args.preset or "realbasicvsr")
    changes = {"param_mode": args.param_mode, "codec_scope": args.codec_scope}
    config = dataclasses.replace(config, **{name: value for name, value in changes.items() if value})
    return sets.Settings(config=config, seed=seed, upscale=not args.no_upscale)


def _check(args: argparse.Namespace) -> int:
    manifest = sets.read_manifest(args.check)
    folder = args.check if args.check.is_dir() else args.check.parent
    total = sum(len(clip["outputs"]) + (len(clip["inputs"]) if args.input else 0) for clip in manifest["clips"])
    results = tqdm(sets.check_set(manifest, folder, args.input), total=total, unit="file", disable=None)
    problems = [problem for problem in results if problem is not None]
    if args.json:
        print(json.dumps({"files": total, "problems": problems}))
    elif problems:
        print("\n".join(problems[:20]))
    if problems:
        raise ValueError(
            f"{len(problems)} of {total} files of {folder} do not match the manifest; first: {problems[0]}"
        )
    if not args.json:
        print(f"{folder}: all {total} files match the manifest")
    return 0


def _summary(manifest: Mapping, output: pathlib.Path) -> dict:
    last = [clip["encodings"][-1]["bits_per_pixel"] for clip in manifest["clips"] if clip.get("encodings")]
    return {
        "output": str(output),
        "manifest": str(output / sets.MANIFEST),
        "settings": manifest["settings"],
        "clips": len(manifest["clips"]),
        "frames": sum(clip["frames"] for clip in manifest["clips"]),
        "bits_per_pixel": statistics.mean(last) if last else None,
    }


def _show(summary: Mapping) -> None:
    bits = summary["bits_per_pixel"]
    cost = "" if bits is None else f", {bits:.2f} bits per pixel in the last encoding"
    print(f"{summary['frames']} frames of {summary['clips']} clip(s){cost}\n{summary['manifest']}")


def run(args: argparse.Namespace) -> int:
    if args.check is not None:
        return _check(args)
    if args.input is None or args.output is None:
        raise ValueError("an INPUT and an output folder (-o OUT) are needed, or --check MANIFEST")
    if args.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {args.workers}")
    settings = _settings(args)
    frames = sets.count_frames(args.input)
    # a frame counts half when it is read and half when it is written
    with tqdm(total=frames and 2 * frames, unit="frame", unit_scale=0.5, disable=None) as bar:
        manifest = sets.make_set(args.input, args.output, settings, workers=args.workers, step=bar.update)
    if args.json:
        print(json.dumps(_summary(manifest, args.output)))
    else:
        _show(_summary(manifest, args.output))
    if args.remake is not None:
        other = sets.differences(manifest, sets.read_manifest(args.remake))
        if other:
            raise ValueError(
                f"{len(other)} frame(s) differ from {args.remake}, first {other[0]}; compare the library versions that "
                "both manifests state"
            )
        if not args.json:
            print(f"equal to {args.remake}, pixel by pixel")
    return 0
