"""What the verbs on data sets share: which data set, which models."""

import argparse
import functools
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

from ..datasets import CLEAN, DATASETS, Degradation, FlowDataset, dataset_class, degradations, open_dataset
from ..evaluate import DAFlowPredictor, Predictor, RaftPredictor, ZeroPredictor
from ..frames.degrade.evaluation_set import file_hash
from ..models import RAFT
from ._estimate import add_model_arguments, estimator_options, load_model, model_identity, refuse_daflow_options

ZERO = "zero"
_TUPLES = ("cameras", "directions")


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """``--dataset``, ``--root``, ``--split`` and ``--option``."""
    parser.add_argument("--dataset", required=True, choices=list(DATASETS), metavar="D", help=", ".join(DATASETS))
    parser.add_argument("--root", type=pathlib.Path, metavar="R", help="its folder (default datasets/<its usual name>)")
    parser.add_argument("--split", help="default: the data set's scored one (training; validation where it has one)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further argument of the data set: cameras=left, directions=FW (spring, flyingthings3d), pairs=LIST.csv "
        "(pairs), flow_root=FOLDER (folder, youhq)",
    )


def dataset_options(args: argparse.Namespace) -> dict[str, object]:
    """``--split`` and ``--option`` as arguments of the data set.

    Raises:
        ValueError: an option that the data set does not have.
    """
    cls = dataset_class(args.dataset)
    known = set(inspect.signature(cls.__init__).parameters) - {"self", "root", "options", "dstype", "gt"}
    options: dict[str, object] = {}
    for text in args.option:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--option {text}: {cls.name} takes {', '.join(sorted(known)) or 'none'}, as NAME=VALUE")
        options[name] = tuple(value.split(",")) if name in _TUPLES else value
    if args.split:
        options["split"] = args.split
    elif "validation" in cls.splits:
        options["split"] = "validation"
    return options


def add_predictor_arguments(
    parser: argparse.ArgumentParser, *, iters: int, flag: str = "--model", several: bool = False
) -> None:
    """``--model`` (or another ``flag``), ``--scale`` and those of every model."""
    parser.add_argument(
        flag,
        dest="model",
        required=True,
        metavar="[NAME=]MODEL",
        help="RAFT weights, a DA-Flow pipeline folder, a name of `daflow list`, or zero: no motion anywhere"
        + ("; repeat it for several models" if several else ""),
        **({"action": "append"} if several else {"type": lambda text: [text]}),
    )
    parser.add_argument(
        "--scale", type=int, default=0, metavar="S", help="run on images resized 2**S times, as SEA-RAFT's -1 on Spring"
    )
    add_model_arguments(parser, iters=iters, seed_flag="--noise-seed")


def load_predictors(args: argparse.Namespace) -> list[Predictor]:
    """The models of ``--model``, each with the hash of its weights.

    Raises:
        ValueError, FileNotFoundError: two models of one name, a model that does not exist or is something else.
    """
    predictors: list[Predictor] = []
    for text in args.model:
        if text == ZERO:
            predictors.append(ZeroPredictor())
            continue
        name, equals, source = text.rpartition("=")
        model, path = load_model(source, args), pathlib.Path(source)
        identity = file_hash(path)[:16] if path.is_file() else model_identity(model)
        kind: Any = RaftPredictor if isinstance(model, RAFT) else DAFlowPredictor
        options = estimator_options(model, args)
        predictors.append(kind(name if equals else path.stem, model, identity, scale=args.scale, **options))
    if not any(isinstance(one, DAFlowPredictor) for one in predictors):
        refuse_daflow_options(args, "no model here is one")
    names = [one.name for one in predictors]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"two models are called {repeated[0]!r}; give them names with --model NAME=FILE")
    return predictors


def chosen_degradations(words: list[str]) -> dict[str, Degradation | None]:
    """Level name -> degradation, None for "clean"."""
    levels: dict[str, Degradation | None] = {}
    for word in words:
        for one in [None] if word == CLEAN else degradations(word):
            levels[one.name if one else CLEAN] = one
    return levels


def opener(args: argparse.Namespace, **common: Any) -> functools.partial[FlowDataset]:
    """``open_dataset`` with everything but the degradation filled in."""
    options = dataset_options(args) | common
    return functools.partial(open_dataset, args.dataset, args.root, **options)


def open_for(make: Callable[..., FlowDataset], degradation: Degradation | None, **lq: Any) -> FlowDataset:
    """The data set at one level; ``lq`` (window, seed) applies to degraded levels."""
    return make() if degradation is None else make(degrade=degradation, **lq)
