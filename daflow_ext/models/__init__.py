"""Models: whole networks assembled from the packages to the left; DA-Flow's are imported when asked for."""

from .raft import RAFT
from .registry import ModelInfo, get_model, list_models

__all__ = ["RAFT", "ModelInfo", "get_model", "list_models"]
