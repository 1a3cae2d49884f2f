"""The command ``daflow``: one module per verb.

A verb is a module ``cli/<verb>.py`` with ``HELP`` (one line), ``EXAMPLE`` (one command that runs),
``add_arguments(parser)`` and ``run(args) -> int``; adding the file adds the verb.
"""

import argparse
import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..frames._files import sole_writer

_LONGEST_SENTENCE = 600  # some of torch's errors list every dispatch key


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def verbs() -> list[str]:
    """The names of the verbs, from the files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = _Parser(prog="daflow", description="Optical flow between real frames, on compiled kernels.")
    parser.add_argument("--version", action="version", version=f"daflow {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in verbs():
        verb = importlib.import_module(f".{name}", __name__)
        command = commands.add_parser(
            name,
            help=verb.HELP,
            description=getattr(verb, "DESCRIPTION", verb.HELP[0].upper() + verb.HELP[1:] + "."),
            epilog=f"example:\n  {verb.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=verb.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``daflow``; a failure is one sentence on stderr and an exit code other than 0."""
    parser = build_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 2
    args = parser.parse_args(argv)
    try:
        with _sole_writer(args):
            status: int = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"daflow {args.verb}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f"daflow {args.verb}: {_sentence(error)}", file=sys.stderr)
        return 1


def _sole_writer(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Two runs must not write to one place; the processes of one (torchrun's) do."""
    place = getattr(args, "output", None) or getattr(args, "out", None)
    return sole_writer(place) if place and os.environ.get("RANK", "0") == "0" else contextlib.nullcontext()


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    if not isinstance(error, (ValueError, TypeError, OSError, RuntimeError, ImportError)) or not text:
        text = f"{type(error).__name__}: {text}"
    if len(text) <= _LONGEST_SENTENCE:
        return text
    return text[:_LONGEST_SENTENCE] + " ... (--debug shows all of it)"
