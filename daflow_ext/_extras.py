"""Optional dependencies, asked for by name before they are imported."""

import importlib.util


def require_diffusers(what: str) -> None:
    """Raise ImportError with the remedy if diffusers, the extra ``restoration``, is not installed."""
    if importlib.util.find_spec("diffusers") is None:
        raise ImportError(f'{what} needs diffusers; install it with pip install "daflow_ext[restoration]"')


def require_training() -> None:
    """Raise ImportError with the remedy if a part of the extra ``train`` is not installed."""
    for module in ("accelerate", "yaml"):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f'training needs {module}; install it with pip install "daflow_ext[train]"')
