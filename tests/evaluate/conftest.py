import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="session")
def trees():
    """The makers of miniature data sets."""
    path = pathlib.Path(__file__).parents[1] / "datasets" / "trees.py"
    spec = importlib.util.spec_from_file_location("dataset_trees", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
