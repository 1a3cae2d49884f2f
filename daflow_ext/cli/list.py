"""``daflow list``: the models that have a name."""

import argparse
import dataclasses
import json

HELP = "list the models: size, licence, origin of their weights"
EXAMPLE = "daflow list --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of the table")


def run(args: argparse.Namespace) -> int:
    from ..models import list_models

    models = list_models()
    if args.json:
        print(json.dumps([{**dataclasses.asdict(model), "shipped": model.shipped} for model in models]))
        return 0
    for model in models:
        print(f"{model.name:12} {model.parameters / 1e6:8.1f} M parameters   {model.summary}")
        print(f"{'':12} weights: {'shipped' if model.shipped else 'not shipped'}; {model.weights}")
        print(f"{'':12} licence: {model.licence}")
    return 0
