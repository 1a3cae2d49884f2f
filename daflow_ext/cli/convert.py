"""``daflow convert``: RAFT weights between names and files; a DA-Flow folder from the weights of its parts."""

import argparse
import pathlib

from ..models import RAFT, weights
from ._estimate import raft_name

HELP = "convert RAFT weights to another file, or start a DA-Flow folder from RAFT and DiT4SR weights"
DESCRIPTION = """\
With IN: RAFT weights (official .pth, torchvision, safetensors) to another file.

With --raft and --dit4sr: a DA-Flow pipeline folder for training. Its transformer, VAE, scheduler and prompt are those
given; its flow network starts with RAFT's flow, whatever the heads say, see docs/daflow.md."""
EXAMPLE = "daflow convert raft-sintel.pth -o raft-sintel.safetensors"

_FOLDER_OPTIONS = ("vae", "prompt", "flow", "tap_layers", "correlation", "lq_key_mode", "dtype")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="IN", type=pathlib.Path, nargs="?", help="weights file, read without running its code"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=pathlib.Path,
        required=True,
        help=".safetensors, or .pth for torch.load; with --dit4sr a new folder",
    )
    parser.add_argument(
        "--to",
        choices=weights.NAMINGS,
        help="names inside OUT: daflow (bare official names; default), official (with 'module.', as the RAFT scripts "
        "expect) or torchvision (raft_large / raft_small)",
    )
    pipeline = parser.add_argument_group("a DA-Flow folder")
    pipeline.add_argument("--raft", metavar="W", type=pathlib.Path, help="RAFT weights, such as raft-things.pth")
    pipeline.add_argument(
        "--dit4sr",
        metavar="DIR",
        type=pathlib.Path,
        help="the restoration transformer: its folder, or one with transformer/ and perhaps vae/, scheduler/, prompt/",
    )
    pipeline.add_argument("--vae", metavar="DIR", type=pathlib.Path, help="the VAE's folder (default: DIT4SR/vae)")
    pipeline.add_argument(
        "--prompt",
        metavar="FILE",
        type=pathlib.Path,
        help="safetensors with prompt_embeds [M, C] and pooled_prompt_embeds [P] of the empty text (default: "
        "DIT4SR/prompt)",
    )
    pipeline.add_argument(
        "--flow",
        choices=["daflow", "daflow-tiny"],
        help="size of the heads, as in the named model; default daflow",
    )
    pipeline.add_argument(
        "--tap-layers", metavar="I", type=int, nargs="+", help="layers to read, from 0 (default: those of --flow)"
    )
    pipeline.add_argument("--correlation", choices=["concat", "sum"], help="see docs/daflow.md; default concat")
    pipeline.add_argument("--lq-key-mode", choices=["hq_renorm", "own"], help="'own' for dit4sr_r1")
    pipeline.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the transformer and VAE in OUT; the flow network is kept in float32; default float32",
    )


def run(args: argparse.Namespace) -> int:
    if (args.input is None) == (args.dit4sr is None) or (args.raft is None) != (args.dit4sr is None):
        raise ValueError("give one RAFT weights file to convert, or both --raft and --dit4sr for a DA-Flow folder")
    ignored = ("to",) if args.dit4sr is not None else _FOLDER_OPTIONS
    given = [f"--{name.replace('_', '-')}" for name in ignored if getattr(args, name) is not None]
    if given:
        what = "RAFT weights alone" if args.dit4sr is not None else "a DA-Flow folder, which needs --raft and --dit4sr"
        raise ValueError(f"{given[0]} is for {what}")
    if args.dit4sr is not None:
        return _start_pipeline(args)
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        raise ValueError(f"{args.output} is the input itself; give another output")
    model = RAFT.from_pretrained(args.input)
    naming = args.to or "daflow"
    weights.write(model.state_dict(), model.config, args.output, naming)
    print(f"{args.output}: {raft_name(model)}, {naming} names")
    return 0


def _start_pipeline(args: argparse.Namespace) -> int:
    import torch

    from .._extras import require_diffusers
    from ..frames._files import atomic_folder

    require_diffusers("a DA-Flow folder")
    from ..models.pipeline import DAFlowPipeline
    from ..models.start import start_parts

    with atomic_folder(args.output) as folder:
        parts = start_parts(
            args.raft,
            args.dit4sr,
            vae=args.vae,
            prompt=args.prompt,
            configuration=args.flow or "daflow",
            tap_layers=args.tap_layers,
            correlation=args.correlation or "concat",
            lq_key_mode=args.lq_key_mode,
            torch_dtype=getattr(torch, args.dtype or "float32"),
        )
        DAFlowPipeline(**parts).save_pretrained(folder)
    flow = parts["flow"]
    print(
        f"{args.output}: DA-Flow on {raft_name(flow.raft)} and layers "
        f"{', '.join(map(str, flow.config.tap_layers))}, {flow.config.correlation} correlation; not trained yet"
    )
    return 0
