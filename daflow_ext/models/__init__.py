"""Models: whole networks assembled from the packages to the left."""

from .raft import RAFT

__all__ = ["RAFT"]
