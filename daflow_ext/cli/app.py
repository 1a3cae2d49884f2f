"""``daflow app``: a page in the browser for one's own clips."""

import argparse
import copy
import pathlib
import signal
import tempfile
import threading
from typing import TYPE_CHECKING

from ..models.registry import DEFAULT_MODEL
from ._estimate import add_model_arguments, load_estimator
from ._studio import Limits, Studio

if TYPE_CHECKING:
    from ._restoration import Restorer

HELP = "a page in the browser: drop a clip, see its flow, restore, align and stabilise it"
DESCRIPTION = """\
Serves a page on this machine. Drop a clip to see its flow, its restoration, its frames laid onto one of them, and the
clip without shake (one shift, turn and size per frame, smoothed). Needs gradio: pip install "daflow_ext[app]".

The page answers on 127.0.0.1, this machine alone, unless --host says otherwise; nothing is sent elsewhere. Uploads and
results lie in one temporary folder that is removed when the app ends (Ctrl+C, SIGTERM)."""
EXAMPLE = "daflow app --port 7860"

LOCAL = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="M",
        default=DEFAULT_MODEL,
        help="the flow: a model by name, weights or a folder (%(default)s)",
    )
    parser.add_argument(
        "--restoration", metavar="M", default="daflow-tiny", help="as --model of `daflow restore` (default %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to answer on (default %(default)s)")
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860 on")
    parser.add_argument("--max-frames", type=int, metavar="N", default=64, help="longest clip (default %(default)s)")
    parser.add_argument(
        "--max-megapixels", type=float, metavar="N", default=0.6, help="largest frame (default %(default)s)"
    )
    parser.add_argument(
        "--max-megabytes", type=float, metavar="N", default=100.0, help="largest file (default %(default)g)"
    )
    add_model_arguments(parser, iters=12)


def run(args: argparse.Namespace) -> int:
    from ._interface import require_gradio, serving

    require_gradio()
    limits = Limits(args.max_frames, args.max_megapixels, args.max_megabytes)
    ended = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with tempfile.TemporaryDirectory(prefix="daflow_app_") as folder:
            studio = open_studio(args, limits, pathlib.Path(folder))
            with serving(studio, args.host, args.port) as address:
                print(address, flush=True)
                if args.host not in LOCAL:
                    print(f"anyone who reaches {args.host} can use it", flush=True)
                while not ended.wait(1.0):
                    pass
    except KeyboardInterrupt:
        pass  # the way to end it
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def open_studio(args: argparse.Namespace, limits: Limits, folder: pathlib.Path) -> Studio:
    """The models of the arguments; that of the restoration is loaded when first used."""
    flow, restoration = copy.copy(args), copy.copy(args)
    flow.weights = None
    restoration.model, restoration.tile = args.restoration, None

    def open_restorer() -> "Restorer":
        from .._extras import require_diffusers

        require_diffusers("restoration")
        from ._restoration import load

        return load(restoration)

    return Studio(load_estimator(flow), open_restorer, limits, folder)
